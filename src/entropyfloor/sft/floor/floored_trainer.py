"""FlooredTrainer: what trainers of ours share around their `EntropyFloorCallback`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from entropyfloor.models.loss_head import LossHead, TokenLoss
from entropyfloor.models.patch_model import patch_model
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.floor.callback import EntropyFloorCallback
from entropyfloor.sft.floor.floor import EntropyFloor
from entropyfloor.sft.floor.probe import probed_prompts


class FlooredTrainer:
    """A trainer whose model is patched with our loss; before trl's class."""

    args: Any
    _head: LossHead
    _callback: EntropyFloorCallback

    def _patch(
        self,
        loss: TokenLoss,
        *,
        probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None,
        probe_reward: str | RewardFunction | None,
        datasets: Sequence[Any],
    ) -> None:
        """`patch_model` and the callback; once the model is there.

        Args:
            loss: of a micro-batch's tokens.
            probe_prompts: of the probe; None: the first of the first dataset that has any.
            probe_reward: by name or in trl's signature.
            datasets: those of evaluation, then those of training.

        """
        trainer: Any = self
        args = self.args
        if args.entropy_floor is not None:
            probe_prompts = probed_prompts(probe_prompts, datasets, args.floor_probe_prompts)
        self._head = patch_model(trainer.model, loss)
        self._callback = EntropyFloorCallback(
            self._head, args, probe_prompts=probe_prompts, probe_reward=probe_reward
        )
        self._callback.prepare(trainer.model, trainer.processing_class, trainer=trainer)
        trainer.add_callback(self._callback)

    @property
    def floor(self) -> EntropyFloor | None:
        """State and decisions of the entropy floor; None without one."""
        return self._callback.floor

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train as trl's class does; on resume, loss and floor go on from the checkpoint."""
        if (checkpoint := self._checkpoint_of(resume_from_checkpoint)) is not None:
            self._callback.restore(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def _checkpoint_of(self, resume_from_checkpoint: str | Path | bool | None) -> Path | None:
        """The checkpoint that ``train(resume_from_checkpoint)`` goes on from."""
        if isinstance(resume_from_checkpoint, bool):
            last = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint else None
            return None if last is None else Path(last)
        return None if resume_from_checkpoint is None else Path(resume_from_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of trl, and the entropy of rollouts the model was last measured with."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if self.floor is not None and self.floor.probes and self.is_world_process_zero():  # type: ignore[attr-defined]
            card = Path(self.args.output_dir) / "README.md"
            text = card.read_text(encoding="utf-8")
            card.write_text(f"{text}\n{self.floor.card()}", encoding="utf-8")

    # Checkpoints and final models alike; where FSDP saves a sharded state it calls no `_save`.
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, and beside the weights our record; on every process, as Trainer calls it."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        directory = Path(output_dir or self.args.output_dir)
        resumable = directory.name.startswith(PREFIX_CHECKPOINT_DIR)
        self._callback.save(directory, resumable=resumable, main=self.args.should_save)


def default_output_dir(model: Any, method: str) -> str:
    """``MODEL-METHOD``, as trl names the folder where no arguments are given."""
    source = model if isinstance(model, str) else model.config._name_or_path
    return f"{Path(source).name}-{method}"
