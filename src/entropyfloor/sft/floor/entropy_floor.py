"""What SEDTrainer does for ``entropy_floor``: control, probe, judge, log, restore.

each micro-batch   `observe` sums teacher-forced entropy over tokens and ranks
each step          the controller sets the weight of the entropy term for the next one
now and then       a probe samples rollouts; the controller's target moves; a violation is seen
each checkpoint    carries the state, and the entropy of rollouts it was saved with
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from entropyfloor.models.loss_head import LossHead
from entropyfloor.sft.floor.floor_controller import FloorController
from entropyfloor.sft.floor.onset_base import OnsetBase
from entropyfloor.sft.floor.rollout_probe import ProbeResult, RolloutProbe, slowest
from entropyfloor.sft.run_record import read_record

logger = get_logger(__name__)

VIOLATIONS = ("constrain", "stop", "warn")
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
    def _onset(self) -> OnsetBase | None:
        """The base of an anchor that is taken from the model in training."""
        return self.head.base if isinstance(self.head.base, OnsetBase) else None

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
        if onset is not None and not onset.taken:
            if self.controller.arriving:
                onset.take()
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

    def take(self, result: ProbeResult, training_seconds: float) -> None:
        """Take a probe: move the target, choose the next interval, see a violation.

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
        found = {
            "floor_weight": self.head.weight,
            "floor_target": self.controller.target,
            "floor_entropy": self.controller.entropy,
            "probe_entropy": self.probes[-1].entropy if self.probes else None,
            "probe_pass_at_1": self.probes[-1].pass_at_1 if self.probes else None,
            "probe_share": self._probe_seconds / spent if self.probes else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return {
            "settings": self.controller.settings() | {"on_violation": self.on_violation},
            "state": self.controller.state_dict()
            | {"interval": self._interval, "onset": self._onset is not None and self._onset.taken},
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

    def save(self, directory: str | Path) -> dict[str, Any]:
        """The record; into a checkpoint's directory goes what `restore` needs beside it."""
        if self._onset is not None and Path(directory).name.startswith(PREFIX_CHECKPOINT_DIR):
            self._onset.save(directory)
        return self.record()

    def restore(self, record: dict[str, Any], checkpoint: str | Path) -> None:
        """Go on from a checkpoint and its record."""
        if self._onset is not None and record["state"].get("onset"):
            self._onset.load(checkpoint)
        self.controller.load_state_dict(record["state"])
        self._interval = int(record["state"]["interval"])
        self.probes = [ProbeResult(**probe) for probe in record["probes"]]
        self.head.weight = self.controller.weight if self.constrains else 0.0


def measured(checkpoint: str | Path) -> ProbeResult | None:
    """The probe of rollouts that a checkpoint was saved with; None where there was none."""
    record = (read_record(checkpoint) or {}).get("floor")
    return ProbeResult(**record["probes"][-1]) if record and record["probes"] else None


def last_above(output_dir: str | Path, floor: float) -> Path | None:
    """The latest checkpoint-* of a run whose rollout entropy is at least ``floor``, or None."""
    above = _above(output_dir, floor)
    return above[0][0] if above else None


def best_above(output_dir: str | Path, floor: float) -> Path | None:
    """The checkpoint-* with the highest pass@1 among those above ``floor`` (the latest of equals).

    Raises:
        ValueError: a checkpoint above the floor was saved without pass@1.

    """
    above = _above(output_dir, floor)
    for path, probe in above:
        if probe.pass_at_1 is None:
            raise ValueError(f"{path} has no pass@1; train with SEDTrainer(probe_reward=...)")
    return max(above, key=lambda found: found[1].pass_at_1 or 0.0)[0] if above else None


def _above(output_dir: str | Path, floor: float) -> list[tuple[Path, ProbeResult]]:
    found = sorted(
        Path(output_dir).glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])
    )
    probes = [(path, probe) for path in found if (probe := measured(path)) is not None]
    return [(path, probe) for path, probe in probes if probe.entropy >= floor]


class FloorCallback(TrainerCallback):
    """Calls an `EntropyFloor` at the right moments of a SEDTrainer's run."""

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
        taken = floor.probes[-1].step if floor.probes else None
        if floor.probe is None or taken == state.global_step:
            return
        training_seconds = slowest(trainer.accelerator, floor.training_seconds)
        result = floor.probe.measure(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.accelerator,
            step=state.global_step,
            teacher_forced=floor.controller.entropy,
        )
        floor.take(result, training_seconds)
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
            from entropyfloor.sft.floor.floor_plot import write_floor_plot

            write_floor_plot(
                state.log_history,
                [(probe.step, probe.entropy) for probe in floor.probes],
                floor.controller.floor,
                Path(args.output_dir or ".") / "entropy_floor.png",
            )
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
        recorded = read_record(good)
        assert recorded is not None
        floor.restore(recorded["floor"], good)
        logger.warning(f"training stopped ({floor.violated}); restored {good.name}")
