"""``SFTLossProbe``: what GRPO does to the SFT loss, while it does it.

    GRPOTrainer(..., callbacks=[SFTLossProbe(held_out_demonstrations)])

Before the first step and every few steps it reads a small set of held-out demonstrations with the
model in training, and logs ``sft_loss`` (nats per token) among trl's metrics. The reward beside it
is the one that trl logs, on training prompts; both go to ``sft_loss_probe.jsonl``.

    balance(t) = reward - weight * (SFT loss - SFT loss before the first step)

    policy      once the balance has stayed below its best for ``patience`` probes
    "track"     say so, nothing else
    "stop"      end training; the best balance is at ``best_step``
    "mix"       give a JointGRPOTrainer ``mix_weight`` for its SFT loss, and go on

The reward of a probe is the mean of what trl has logged since the probe before. The balance at its
best is the threshold of ``coupling/durations.py``, seen while running: with weight 1, from there on
the SFT loss rises by more than the reward does. One probe is noisy; ``patience`` is what keeps
noise from deciding.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from entropyfloor.io import write_atomic
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.model_state import evaluating
from entropyfloor.rl.monitor_memory import append_log, number
from entropyfloor.rollouts.prompts import PromptSet, row_with_chat_options
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.teacher_forced import (
    Completion,
    check_held_out,
    encode_held_out,
    held_out_loss,
)
from entropyfloor.sft.calling_trainer import find_trainer

FILE_NAME = "sft_loss_probe.jsonl"
POLICIES = ("track", "stop", "mix")
_log = logging.getLogger(__name__)


class SFTLossProbe(TrainerCallback, ExportableState):
    """Track the SFT loss during GRPO, and act at the threshold; see the module.

    Args:
        demonstrations: held-out rows with ``prompt`` and ``completion``; a few dozen are enough.
        every: optimizer steps between probes.
        policy: ``"track"``, ``"stop"`` or ``"mix"``.
        weight: what a nat per token costs in reward.
        patience: probes below the best balance before the policy acts.
        mix_weight: what ``"mix"`` sets the trainer's ``sft_weight`` to.

    Attributes:
        probes: one dictionary per probe: ``step``, ``sft_loss``, ``reward``, ``balance``; reward
            and balance are None where trl has logged no reward yet.
        best_step: step of the best balance so far; None before the first.
        acted_at: step at which the threshold was found to have been passed; None before.
        message: one sentence on that; empty before.

    Raises:
        ValueError: rows without completion, an unknown policy, numbers out of range.

    """

    def __init__(
        self,
        demonstrations: PromptSet | Sequence[Mapping[str, Any]],
        *,
        every: int = 10,
        policy: str = "track",
        weight: float = 1.0,
        patience: int = 3,
        mix_weight: float = 0.1,
    ) -> None:
        self.rows = demonstration_rows(demonstrations, "demonstrations")
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"weight must be 0 or positive and finite; got {weight!r}")
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}; choose one of {', '.join(POLICIES)}")
        for name, value in (("every", every), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if not mix_weight > 0.0:
            raise ValueError(f"mix_weight must be positive; got {mix_weight}")
        self.every, self.policy, self.weight = every, policy, weight
        self.patience, self.mix_weight = patience, mix_weight
        self.probes: list[dict[str, Any]] = []
        self.acted_at: int | None = None
        self.message = ""
        self._completions: list[Completion] = []
        self._rewards: list[float] = []
        self._trainer: Any = None
        self._log_file: Path | None = None

    @property
    def best_step(self) -> int | None:
        """Step of the best balance so far; of a loss or reward that is NaN nothing is the best."""
        known = [probe for probe in self.probes if number(probe["balance"]) is not None]
        return None if not known else int(max(known, key=lambda p: p["balance"])["step"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data."""
        return {"args": {}, "attributes": {"remembered": self.remembered}}

    @property
    def remembered(self) -> dict[str, Any]:
        """What the run has shown so far, under the name that checkpoints keep it."""
        return {
            "probes": self.probes,
            "acted_at": self.acted_at,
            "message": self.message,
            "rewards": self._rewards,
        }

    @remembered.setter
    def remembered(self, kept: dict[str, Any]) -> None:
        self.probes = [dict(probe) for probe in kept["probes"]]
        self.acted_at, self.message = kept["acted_at"], kept["message"]
        self._rewards = list(kept["rewards"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Find the trainer, take up a checkpoint's state, probe before the first step."""
        self._trainer = find_trainer(state)
        if self.policy == "mix" and not hasattr(self._trainer, "sft_weight"):
            raise ValueError(
                "policy 'mix' needs a trainer that has an SFT loss to mix in; use "
                "entropyfloor.JointGRPOTrainer with sft_weight=0.0, or policy 'track' or 'stop'"
            )
        variables = getattr(self._trainer, "chat_template_kwargs", None)
        self._completions = encode_demonstrations(self.rows, _tokenizer_of(others), variables)
        self.probes, self.acted_at, self.message, self._rewards = [], None, "", []
        kept = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step > 0 and isinstance(kept, dict):
            self.remembered = kept["attributes"]["remembered"]
            if self.acted_at is not None:
                self._mix()
        # A checkpoint without a probe has no place for its state, which transformers then misses.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.is_world_process_zero:
            self._log_file = Path(args.output_dir) / FILE_NAME
            write_atomic(self._log_file, "")
            for probe in self.probes:
                if probe["balance"] is not None:
                    append_log(self._log_file, probe)
        if not self.probes:
            self._probe(state, **others)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Probe where it is time."""
        if state.global_step % self.every == 0:
            self._probe(state, **others)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take the reward, complete the probes that wait for one, and decide."""
        reward = (logs or {}).get("reward")
        if reward is None:
            return
        self._rewards.append(float(reward))
        waiting = [probe for probe in self.probes if probe["reward"] is None]
        if not waiting:
            return
        mean = sum(self._rewards) / len(self._rewards)
        self._rewards = []
        for probe in waiting:
            probe["reward"] = mean
            rise = probe["sft_loss"] - self.probes[0]["sft_loss"]
            probe["balance"] = mean - self.weight * rise
            if self._log_file is not None:
                append_log(self._log_file, probe)
        self._decide(state, control)

    def _probe(self, state: TrainerState, **others: Any) -> None:
        from accelerate.utils import broadcast_object_list

        model = others["model"]
        checkpoint = LoadedCheckpoint("the model in training", "", model, _tokenizer_of(others))
        with evaluating(model):
            sums = held_out_loss(checkpoint, self._completions, num_prompts=len(self.rows))
        loss = [sum(sums.sums) / sum(sums.tokens)]
        broadcast_object_list(loss)  # every rank decides by the main one's number
        self.probes.append(
            {"step": state.global_step, "sft_loss": loss[0], "reward": None, "balance": None}
        )
        metrics = getattr(self._trainer, "_metrics", None)
        if metrics is not None and state.global_step > 0:
            metrics["train"]["sft_loss"].append(loss[0])

    def _decide(self, state: TrainerState, control: TrainerControl) -> None:
        best, known = self.best_step, [p for p in self.probes if p["balance"] is not None]
        after = [probe for probe in known if best is not None and probe["step"] > best]
        if self.acted_at is not None or len(after) < self.patience:
            return
        self.acted_at = state.global_step
        last = known[-1]
        self.message = (
            f"SFTLossProbe: reward - {self.weight:g} x rise in SFT loss was best at step {best} "
            f"and has been below for {len(after)} probes (SFT loss "
            f"{self.probes[0]['sft_loss']:.3f} before training, {last['sft_loss']:.3f} now, nats "
            "per token)"
        )
        if self.policy == "stop":
            control.should_training_stop = True
            self.message += "; training stops"
        elif self.policy == "mix":
            self._mix()
            self.message += f"; from here {self.mix_weight:g} x SFT loss is mixed in"
        if state.is_world_process_zero:
            _log.warning(self.message)

    def _mix(self) -> None:
        if self.policy == "mix":
            self._trainer.sft_weight = self.mix_weight


def _tokenizer_of(others: Mapping[str, Any]) -> Any:
    tokenizer = others["processing_class"]
    return getattr(tokenizer, "tokenizer", tokenizer)  # of a processor


def demonstration_rows(rows: PromptSet | Sequence[Mapping[str, Any]], name: str) -> PromptSet:
    """Rows with ``prompt`` and ``completion``; ValueError, by row, where there is none."""
    demonstrations = rows if isinstance(rows, PromptSet) else PromptSet(tuple(rows), name)
    check_held_out(demonstrations)
    return demonstrations


def encode_demonstrations(
    rows: PromptSet, tokenizer: Any, chat_template_kwargs: dict[str, Any] | None
) -> list[Completion]:
    """In tokens, rendered with the trainer's ``chat_template_kwargs``, which a row's go before."""
    rendered = (
        row_with_chat_options(r, chat_template_kwargs=chat_template_kwargs) for r in rows.rows
    )
    rows = PromptSet(tuple(rendered), rows.source)
    encoded = encode_prompts(rows, tokenizer, where="the model in training")
    return encode_held_out(rows, encoded, tokenizer)
