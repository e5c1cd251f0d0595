"""What a trainer needs around its `EntropyFloor`: a base model, the floor itself, a resume.

A trainer that holds a floor has a `LossHead`, calls ``floor.observe`` with each micro-batch's
entropy, adds ``floor.logs()`` to its log, and what ``floor.save()`` returns to its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from peft import PeftModel

from entropyfloor.models.loss_head import LossHead
from entropyfloor.rollouts.prompts import Prompt, PromptSet, row_with_chat_options
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name
from entropyfloor.sft.floor.base_cache_pass import cached_onset
from entropyfloor.sft.floor.base_states import AdapterFreeBase, FrozenBase, LiveBase
from entropyfloor.sft.floor.entropy_floor import EntropyFloor, FloorCallback
from entropyfloor.sft.floor.floor_options import FloorOptions
from entropyfloor.sft.floor.onset_base import OnsetBase
from entropyfloor.sft.floor.rollout_probe import RolloutProbe, prompts_of
from entropyfloor.sft.run_record import read_record, write_run_record

logger = get_logger(__name__)


def base_of_term(
    trainer: Any, args: FloorOptions, *, cached: bool = False
) -> LiveBase | FrozenBase | OnsetBase | None:
    """The base model of an anchor; taken before anything is trained, and before the head.

    Args:
        trainer: with its model.
        args: its settings.
        cached: the base is to be read from ``floor_base_cache``: no copy of the model.

    """
    constrained = args.entropy_floor is not None and args.on_violation == "constrain"
    if not constrained or not args.build_term().needs_base:
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            f"floor_place={args.floor_place!r} needs the whole base model on every process, "
            "which DeepSpeed and FSDP shard. Use floor_place='uniform'"
        )
    if args.floor_place == "onset_anchor":
        return cached_onset(trainer) if cached else OnsetBase(trainer.model)
    if isinstance(trainer.model, PeftModel):
        return AdapterFreeBase(trainer.model)
    return LiveBase(trainer.model) if cached else FrozenBase(trainer.model)


def probe_prompts_of(
    args: FloorOptions,
    probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None,
    *datasets: Any,
) -> PromptSet | None:
    """The first prompts of those given, else of the first dataset that has any; or None."""
    count = args.floor_probe_prompts
    if args.entropy_floor is None or not count:
        return None
    given = probe_prompts.rows if isinstance(probe_prompts, PromptSet) else probe_prompts or []
    rows = [p if isinstance(p, Mapping) else {"prompt": p} for p in given[:count]]
    prompts = PromptSet(tuple(rows), "probe_prompts") if rows else None
    if prompts is None:
        prompts = next((p for data in datasets if (p := prompts_of(data, count))), None)
    variables = getattr(args, "chat_template_kwargs", None)  # of GRPOConfig; SFT has the column
    if prompts is None or not variables:
        return prompts
    options = (row_with_chat_options(r, chat_template_kwargs=variables) for r in prompts.rows)
    return PromptSet(tuple(options), prompts.source)


def attach_floor(
    trainer: Any,
    head: LossHead,
    args: FloorOptions,
    *,
    base: LiveBase | FrozenBase | OnsetBase | None,
    prompts: PromptSet | None,
    reward: str | RewardFunction | None,
) -> EntropyFloor:
    """The floor of a run, called by the trainer's callbacks from now on.

    Args:
        trainer: with model, accelerator and tokenizer.
        head: of its model.
        args: its settings; ``entropy_floor`` is set.
        base: of `base_of_term`.
        prompts: of `probe_prompts_of`.
        reward: of the probe, by name or in trl's signature.

    """
    head.term, head.base = args.build_term(), base
    config = trainer.model.config.get_text_config()
    vocabulary = config.vocab_size
    controller = args.build_controller()
    if controller.floor >= math.log(vocabulary):
        raise ValueError(
            f"entropy_floor is {controller.floor} nats; no distribution over {vocabulary} "
            f"tokens has more than {math.log(vocabulary):.2f}. The paper's threshold is 0.18"
        )
    probe = None
    if prompts is None:
        if args.floor_probe_prompts:
            logger.warning(
                "the datasets have no column 'prompt', so the entropy floor holds for "
                "teacher-forced entropy only, which is not that of rollouts. Pass "
                f"{type(trainer).__name__}(probe_prompts=[...])"
            )
    elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "the probe samples from the model in training, which DeepSpeed and FSDP shard. "
            "Set floor_probe_prompts=0: the floor then holds for teacher-forced entropy"
        )
    else:
        probe = RolloutProbe(
            prompts,
            getattr(trainer.processing_class, "tokenizer", trainer.processing_class),
            max_new_tokens=args.floor_probe_tokens,
            seed=trainer.args.seed,
            reward=reward_by_name(reward) if isinstance(reward, str) else reward,
            context_length=getattr(config, "max_position_embeddings", None),
        )
    floor = EntropyFloor(
        controller,
        head,
        probe,
        on_violation=args.on_violation,
        probe_steps=args.floor_probe_steps,
    )
    trainer.add_callback(FloorCallback(trainer, floor))
    return floor


def restore_floor(floor: EntropyFloor, checkpoint: str | Path) -> None:
    """Go on from a checkpoint.

    Raises:
        ValueError: it was saved without a floor.

    """
    record = read_record(checkpoint)
    if record is None or "floor" not in record:
        raise ValueError(
            f"{checkpoint} was not trained with an entropy floor, so the controller has no "
            "state to go on from. Start a run from it (model=...) instead of resuming"
        )
    floor.restore(record["floor"], checkpoint)


class FlooredTrainer:
    """What a trainer with a loss head writes beside trl's files; comes before trl's class."""

    args: Any
    floor: EntropyFloor | None = None
    _head: LossHead

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of trl, and the entropy of rollouts the model was last measured with."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if self.floor is not None and self.floor.probes and self.is_world_process_zero():  # type: ignore[attr-defined]
            card = Path(self.args.output_dir) / "README.md"
            card.write_text(f"{card.read_text()}\n{self.floor.card()}")

    # Checkpoints and final models alike; where FSDP saves a sharded state it calls no `_save`.
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, and beside the weights our record; written where Trainer writes its files."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        floor = None if self.floor is None else self.floor.save(directory)
        write_run_record(directory, self._head.loss, floor)
