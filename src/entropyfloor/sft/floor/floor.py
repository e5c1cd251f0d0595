"""What a trainer does for ``entropy_floor``: control, probe, judge, log, save, resume.

each micro-batch   `observe` sums teacher-forced entropy over tokens and ranks
each step          the controller sets the weight of the entropy term for the next one
now and then       a probe samples rollouts; the controller's target moves; a violation is seen
each checkpoint    carries the state, and the entropy of rollouts it was saved with

A trainer derives from `FlooredTrainer`, calls ``floor.observe`` with each micro-batch's entropy and
adds ``floor.logs()`` to its log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from entropyfloor.models.loss_head import LossHead, attach_loss_head
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.floor.controller import FloorController
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.sft.floor.probe import (
    ProbeResult,
    RolloutProbe,
    last_above,
    probe_of,
    slowest,
)
from entropyfloor.sft.floor.reference_cache import CachedOnset
from entropyfloor.sft.floor.reference_model import OnsetModel, ReferenceModel, starting_model
from entropyfloor.sft.run_record import read_record, write_run_record
from entropyfloor_losses import TokenStatistics

logger = get_logger(__name__)

_FIRST_PROBE = 10  # steps, where the interval is chosen by cost


@dataclass
class EntropyFloor:
    """State and decisions of one training run.

    Args:
        controller: weight of the term.
        head: whose weight is moved.
        probe: of rollouts; None where there are no prompts, the floor then holds teacher-forced.
        on_violation: "constrain", "stop" or "warn".
        probe_steps: steps between probes; None chooses by cost.
        probe_share: largest share of training time that probes between checkpoints may take.

    """

    controller: FloorController
    head: LossHead
    probe: RolloutProbe | None
    on_violation: str = "constrain"
    probe_steps: int | None = None
    probe_share: float = 0.05
    probes: list[ProbeResult] = field(default_factory=list)
    violated: str | None = None
    _interval: int = _FIRST_PROBE
    _entropy: float = 0.0
    _tokens: float = 0.0
    _probe_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _steps_here: int = 0
    _warned: bool = False

    def __post_init__(self) -> None:
        if self.probe_steps is not None:
            self._interval = self.probe_steps

    @property
    def _onset(self) -> OnsetModel | None:
        """The reference of an anchor to the model in training as it was at one moment."""
        return self.head.reference if isinstance(self.head.reference, OnsetModel) else None

    @property
    def constrains(self) -> bool:
        """Whether the weight of the term is moved."""
        return self.on_violation == "constrain"

    def begin(self) -> None:
        """Start the clock of the probes' share."""
        self._started, self._probe_seconds, self._steps_here = time.perf_counter(), 0.0, 0

    def observe(self, entropy: float, tokens: float) -> None:
        """Add a micro-batch's sum of entropy (nats) over its scored tokens, all ranks."""
        self._entropy += entropy
        self._tokens += tokens

    def step(self) -> None:
        """Close an optimiser step: the next one's weight."""
        entropy = self._entropy / self._tokens if self._tokens else math.nan
        self._entropy = self._tokens = 0.0
        self._steps_here += 1
        self.controller.update(entropy)
        onset = self._onset
        if onset is not None and not onset.captured:
            if self.controller.arriving:
                onset.capture()
            else:
                self.controller.rest()
        self.head.weight = self.controller.weight if self.constrains else 0.0
        if self.constrains and self.controller.saturated and not self._warned:
            self._warned = True
            held = self.controller
            logger.warning(
                f"the entropy floor does not hold: the weight is at its maximum {held.max_weight} "
                f"and entropy {held.entropy:.3f} nats (rollouts about "
                f"{(held.entropy or 0) * held.ratio:.3f}) stays below the floor {held.floor}. "
                "Raise floor_max_weight, lower the floor, or choose another floor_place"
            )

    def wants_probe(self, step: int) -> bool:
        """Whether a probe is due between checkpoints."""
        return self.probe is not None and step % self._interval == 0

    @property
    def training_seconds(self) -> float:
        """Time since `begin` without that of probes, on this process."""
        return max(time.perf_counter() - self._started - self._probe_seconds, 1e-9)

    def add_probe(self, result: ProbeResult, training_seconds: float) -> None:
        """Heed a probe: move the target, choose the next interval, see a violation.

        Args:
            result: the same on all processes.
            training_seconds: likewise; processes that probe at different steps wait forever.

        """
        self.probes.append(result)
        self._probe_seconds += result.seconds
        self.controller.correct(result.entropy)
        if self.probe_steps is None and self._steps_here:
            per_step = training_seconds / self._steps_here
            least = math.ceil(result.seconds * (1 - self.probe_share) / self.probe_share / per_step)
            self._interval = max(_FIRST_PROBE, least)
        if result.entropy < self.controller.floor:
            self.violated = (
                f"rollout entropy {result.entropy:.3f} nats at step {result.step} is below the "
                f"floor {self.controller.floor}"
            )
        else:
            self.violated = None

    def logs(self) -> dict[str, float]:
        """What is logged beside the loss."""
        spent = max(time.perf_counter() - self._started, 1e-9)
        values = {
            "floor_weight": self.head.weight,
            "floor_target": self.controller.target,
            "floor_entropy": self.controller.entropy,
            "probe_entropy": self.probes[-1].entropy if self.probes else None,
            "probe_pass_at_1": self.probes[-1].pass_at_1 if self.probes else None,
            "probe_share": self._probe_seconds / spent if self.probes else None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return {
            "settings": self.controller.settings() | {"on_violation": self.on_violation},
            "state": self.controller.state_dict()
            | {
                "interval": self._interval,
                "onset": self._onset is not None and self._onset.captured,
            },
            "probes": [asdict(probe) for probe in self.probes],
        }

    def card(self) -> str:
        """A section for the model card; there must have been a probe."""
        last, held = self.probes[-1], self.controller
        passed = "" if last.pass_at_1 is None else f", pass@1 {last.pass_at_1:.3f}"
        return (
            "## Entropy\n\n"
            f"Mean next-token entropy of rollouts at temperature 1 after step {last.step}: "
            f"{last.entropy:.3f} nats{passed} (floor {held.floor}, {self.on_violation}; weight of "
            f"the term {self.head.weight:.4f}; {last.tokens} tokens sampled).\n"
        )

    def save(self, directory: Path) -> dict[str, Any]:
        """The record; into a checkpoint's directory goes what `restore` needs beside it."""
        if self._onset is not None and directory.name.startswith(PREFIX_CHECKPOINT_DIR):
            self._onset.save(directory)
        return self.record()

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it was saved without a floor.

        """
        record = (read_record(checkpoint) or {}).get("floor")
        if record is None:
            raise ValueError(
                f"{checkpoint} was not trained with an entropy floor, so the controller has no "
                "state to go on from. Start a run from it (model=...) instead of resuming"
            )
        if self._onset is not None and record["state"].get("onset"):
            self._onset.load(checkpoint)
        self.controller.load_state_dict(record["state"])
        self._interval = int(record["state"]["interval"])
        self.probes = [ProbeResult(**probe) for probe in record["probes"]]
        self.head.weight = self.controller.weight if self.constrains else 0.0


class FloorCallback(TrainerCallback):
    """Calls an `EntropyFloor` at the right moments of a trainer's run."""

    def __init__(self, trainer: Any, floor: EntropyFloor) -> None:
        self._trainer, self._floor = trainer, floor

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._floor.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the weight; probe where due, at the end, and before a checkpoint."""
        self._floor.step()
        last = state.global_step >= state.max_steps
        if self._floor.wants_probe(state.global_step) or control.should_save or last:
            self._probe(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Probe before a checkpoint that is saved by epochs."""
        if control.should_save:
            self._probe(state, control)

    def _probe(self, state: TrainerState, control: TrainerControl) -> None:
        floor, trainer = self._floor, self._trainer
        last = floor.probes[-1].step if floor.probes else None
        if floor.probe is None or last == state.global_step:
            return
        training_seconds = slowest(trainer.accelerator, floor.training_seconds)
        result = floor.probe.measure(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.accelerator,
            step=state.global_step,
            teacher_forced=floor.controller.entropy,
        )
        floor.add_probe(result, training_seconds)
        if floor.violated and floor.on_violation != "constrain":
            logger.warning(floor.violated)
            if floor.on_violation == "stop":
                control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Plot the run; with "stop" put the weights of the last checkpoint above the floor back."""
        floor = self._floor
        if floor.probes and state.is_world_process_zero:
            from entropyfloor.io import write_pictures
            from entropyfloor.sft.floor.plot import write_floor_plot

            probes = [(probe.step, probe.entropy) for probe in floor.probes]
            draw = partial(write_floor_plot, state.log_history, probes, floor.controller.floor)
            write_pictures({Path(args.output_dir or ".") / "entropy_floor.png": draw})
        if floor.on_violation != "stop" or not floor.violated:
            return
        output_dir = args.output_dir
        assert output_dir is not None
        good = last_above(output_dir, floor.controller.floor)
        if good is None:
            logger.warning(
                f"training stopped ({floor.violated}) and no checkpoint of {output_dir} was "
                "measured above the floor, so the weights stay as they are. Save more often "
                "(save_steps)"
            )
            return
        self._trainer._load_from_checkpoint(str(good))
        floor.restore(good)
        logger.warning(f"training stopped ({floor.violated}); restored {good.name}")


class FlooredTrainer:
    """A trainer with a loss head and, if ``entropy_floor`` is set, a floor; before trl's class."""

    args: Any
    floor: EntropyFloor | None = None
    _head: LossHead

    def _attach(
        self,
        loss: Callable[[TokenStatistics], Tensor],
        *,
        probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None,
        probe_reward: str | RewardFunction | None,
        datasets: Sequence[Any],
        cached: bool = False,
    ) -> None:
        """Put the loss into the model's forward, and the floor around it; once the model is there.

        Args:
            loss: of a micro-batch's tokens.
            probe_prompts: of the probe; None: the first of the first dataset that has any.
            probe_reward: by name or in trl's signature.
            datasets: those of evaluation, then those of training.
            cached: the reference will be read from ``floor_reference_cache``.

        """
        model: Any = self.model  # type: ignore[attr-defined]
        reference = self._reference(cached)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._head = attach_loss_head(base, loss)
        args: FloorOptions = self.args
        if args.entropy_floor is None:
            return
        self._head.term, self._head.reference = args.build_term(), reference
        controller = args.build_controller()
        vocabulary = model.config.get_text_config().vocab_size
        if controller.floor >= math.log(vocabulary):
            raise ValueError(
                f"entropy_floor is {controller.floor} nats; no distribution over {vocabulary} "
                f"tokens has more than {math.log(vocabulary):.2f}. The paper's threshold is 0.18"
            )
        self.floor = EntropyFloor(
            controller,
            self._head,
            probe_of(self, probe_prompts, probe_reward, datasets),
            on_violation=args.on_violation,
            probe_steps=args.floor_probe_steps,
        )
        self.add_callback(FloorCallback(self, self.floor))  # type: ignore[attr-defined]

    def _reference(self, cached: bool) -> ReferenceModel | None:
        """The reference model of an anchor; None without one."""
        args: FloorOptions = self.args
        constrained = args.entropy_floor is not None and args.on_violation == "constrain"
        if not constrained or not args.build_term().needs_reference:
            return None
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # type: ignore[attr-defined]
            raise ValueError(
                f"floor_place={args.floor_place!r} needs the whole reference model on every "
                "process, which DeepSpeed and FSDP shard. Use floor_place='uniform'"
            )
        model = self.model  # type: ignore[attr-defined]
        if args.floor_place == "onset_anchor":
            return CachedOnset(self) if cached else OnsetModel(model)
        return starting_model(model, copied=not cached)

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
