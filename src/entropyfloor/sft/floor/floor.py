"""The floor of one run: control, probe, judge, log, save, resume.

each step          teacher-forced entropy, summed over tokens and ranks, is observed; the controller
                   sets the weight of the entropy term for the next one
now and then       a probe samples rollouts; the controller's target moves; a violation is seen
each checkpoint    carries the state, and the entropy of rollouts it was saved with

``callback.py`` calls these at the right moments.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.ranks import rank_and_processes
from entropyfloor.sft.floor.controller import FloorController
from entropyfloor.sft.floor.held_out import HeldOutSlice
from entropyfloor.sft.floor.probe import ProbeResult, RolloutProbe, last_above
from entropyfloor.sft.floor.reference_model import OnsetModel
from entropyfloor.sft.run_record import read_record

logger = logging.getLogger(__name__)

_FIRST_PROBE = 10  # steps, where the interval is chosen by cost
# Before an "auto" floor is in force: training entropy that fell by this factor since the last
# measurement calls for one, so that the onset is not passed between two. Ten bring it to a tenth.
_FALL = 1.25


def warn(message: str) -> None:
    """Say it on one process."""
    if rank_and_processes()[0] == 0:
        logger.warning(message)


@dataclass
class EntropyFloor:
    """State and decisions of one training run.

    Args:
        controller: weight of the term.
        head: whose weight is moved.
        probe: of rollouts; None where there are no prompts, the floor then holds teacher-forced.
        held_out: where an "auto" floor is read off; rollouts are then for the record.
        on_violation: "constrain", "stop" or "warn".
        probe_steps: steps between probes; None chooses by cost, and by how fast entropy falls.
        probe_share: largest share of training time that probes between checkpoints may take.

    """

    controller: FloorController
    head: LossHead
    probe: RolloutProbe | None
    held_out: HeldOutSlice | None = None
    on_violation: str = "constrain"
    probe_steps: int | None = None
    probe_share: float = 0.05
    probes: list[ProbeResult] = field(default_factory=list)
    violated: str | None = None
    _interval: int = _FIRST_PROBE
    _measured_at: float | None = None  # the lowest training entropy at which rows were measured
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
        """Add a sum of entropy (nats) over scored tokens of this step, all ranks."""
        self._entropy += entropy
        self._tokens += tokens

    def step(self) -> None:
        """Close an optimiser step: the next one's weight."""
        entropy = self._entropy / self._tokens if self._tokens else math.nan
        self._entropy = self._tokens = 0.0
        self._steps_here += 1
        self.controller.update(entropy)
        if self._measured_at is None:
            self._measured_at = self.controller.entropy
        onset = self._onset
        if self.held_out is not None and not self.held_out.in_force:
            self.controller.rest()
        elif onset is not None and not onset.captured:
            if self.controller.arriving:
                onset.capture()
            else:
                self.controller.rest()
        self.head.weight = self.controller.weight if self.constrains else 0.0
        if self.constrains and self.controller.saturated and not self._warned:
            self._warned = True
            held = self.controller
            warn(
                f"the entropy floor does not hold: the weight is at its maximum {held.max_weight} "
                f"and entropy {held.entropy:.3f} nats (rollouts about "
                f"{(held.entropy or 0) * held.ratio:.3f}) stays below the floor {held.floor}. "
                "Raise floor_max_weight, lower the floor, or choose another floor_place"
            )

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure: prompts, or held-out rows."""
        return self.probe is not None or self.held_out is not None

    def wants_probe(self, step: int) -> bool:
        """Whether a probe is due between checkpoints."""
        return self.measures and (step % self._interval == 0 or self._has_fallen)

    @property
    def _has_fallen(self) -> bool:
        """Whether entropy is far below where an "auto" floor that is not in force was measured."""
        if self.held_out is None or self.held_out.in_force or self.probe_steps is not None:
            return False
        now, then = self.controller.entropy, self._measured_at
        return now is not None and then is not None and now * _FALL < then

    def measure(self, model: Any, wrapped: Any, *, step: int, rollouts: bool) -> ProbeResult | None:
        """Measure the model as it is; the same on every process, and every one must call.

        Only where there is something to measure (`measures`).

        Args:
            model: that samples.
            wrapped: the same for a forward with labels, as the trainer wraps it.
            step: after which optimiser step.
            rollouts: sample them beside held-out rows too; without held-out rows always.

        Returns:
            None where this step was measured already.

        """
        rollouts = self.probe is not None and (rollouts or self.held_out is None)
        last = self.probes[-1] if self.probes else None
        if last is not None and last.step == step and (last.entropy is not None or not rollouts):
            return None
        result = ProbeResult(step, None, self.controller.entropy, tokens=0, seconds=0.0)
        if rollouts:
            assert self.probe is not None
            result = self.probe.measure(model, step=step, teacher_forced=self.controller.entropy)
        if (rows := self.held_out) is not None:
            rows.measure(self.head, wrapped)
            result = replace(
                result,
                seconds=result.seconds + rows.seconds,
                held_out_loss=rows.loss,
                held_out_entropy=rows.entropy,
            )
        return result

    @property
    def _sampled(self) -> ProbeResult | None:
        """The last probe with rollouts."""
        sampled = (probe for probe in reversed(self.probes) if probe.entropy is not None)
        return next(sampled, None)

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
        if self._measured_at is not None and self.controller.entropy is not None:
            self._measured_at = min(self._measured_at, self.controller.entropy)
        if self.held_out is not None:
            self.controller.floor = self.held_out.floor
        self.controller.correct(result.held)
        if self.probe_steps is None and self._steps_here:
            per_step = training_seconds / self._steps_here
            # Between checkpoints an "auto" floor samples nothing.
            seconds = result.seconds if self.held_out is None else self.held_out.seconds
            least = math.ceil(seconds * (1 - self.probe_share) / self.probe_share / per_step)
            self._interval = max(_FIRST_PROBE, least)
        in_force = self.held_out is None or self.held_out.in_force
        if in_force and result.held < self.controller.floor:
            whose = "rollout" if self.held_out is None else "held-out"
            self.violated = (
                f"{whose} entropy {result.held:.3f} nats at step {result.step} is below the "
                f"floor {self.controller.floor:.3g}"
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
            "probe_entropy": self._sampled.entropy if self._sampled else None,
            "probe_pass_at_1": self._sampled.pass_at_1 if self._sampled else None,
            "probe_share": self._probe_seconds / spent if self.probes else None,
        }
        if (rows := self.held_out) is not None and self.probes:
            values |= {
                "entropy_floor": self.controller.floor,
                "floor_in_force": float(rows.in_force),
                "held_out_loss": rows.loss,
                "held_out_entropy": rows.entropy,
                "calibration_gap": self.probes[-1].calibration_gap,
            }
        return {name: value for name, value in values.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        settings, rows = self.controller.settings(), self.held_out
        if rows is not None:
            settings |= {"factor": rows.factor, "held_out": rows.source}
        return {
            "settings": settings | {"on_violation": self.on_violation},
            "state": self.controller.state_dict()
            | {
                "interval": self._interval,
                "measured_at": self._measured_at,
                "onset": self._onset is not None and self._onset.captured,
                **({} if rows is None else {"held_out": rows.state_dict()}),
            },
            "probes": [asdict(probe) for probe in self.probes],
        }

    def card(self) -> str:
        """A section for the model card; there must have been a probe."""
        last, held, text = self.probes[-1], self.controller, "## Entropy\n\n"
        if last.held_out_loss is not None:
            text += (
                f"On held-out rows after step {last.step}: entropy {last.held_out_entropy:.3f}, "
                f"loss {last.held_out_loss:.3f} nats per token; the floor, {held.floor:.3f}, is "
                "read off their lowest loss.\n\n"
            )
        if last.entropy is None:
            return text
        passed = "" if last.pass_at_1 is None else f", pass@1 {last.pass_at_1:.3f}"
        floor = "" if last.held_out_loss is not None else f"floor {held.floor}, "
        return text + (
            f"Mean next-token entropy of rollouts at temperature 1 after step {last.step}: "
            f"{last.entropy:.3f} nats{passed} ({floor}{self.on_violation}; weight of "
            f"the term {self.head.weight:.4f}; {last.tokens} tokens sampled).\n"
        )

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
        if self.held_out is not None:
            if "held_out" not in record["state"]:
                raise ValueError(
                    f"{checkpoint} was trained with an entropy floor of "
                    f"{record['settings']['floor']} nats, not with 'auto': resume it with that"
                )
            self.held_out.load_state_dict(record["state"]["held_out"])
            self.controller.floor = self.held_out.floor
        self.controller.load_state_dict(record["state"])
        self._interval = int(record["state"]["interval"])
        self._measured_at = record["state"]["measured_at"]
        self.probes = [ProbeResult(**probe) for probe in record["probes"]]
        self.head.weight = self.controller.weight if self.constrains else 0.0


def restore_last_above(floor: EntropyFloor, trainer: Any, output_dir: str) -> None:
    """Load the last checkpoint of ``output_dir`` that was measured above a violated floor.

    Args:
        floor: violated; it goes back to its state there.
        trainer: that was stopped; None: nothing is loaded.
        output_dir: of the run.

    """
    good = last_above(output_dir, floor.controller.floor)
    if good is None or trainer is None:
        warn(
            f"training stopped ({floor.violated}) and no checkpoint of {output_dir} was measured "
            "above the floor, so the weights stay as they are. Save more often (save_steps)"
        )
        return
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        whole = not hasattr(trainer.model, "peft_config")  # frozen weights are not in checkpoints
        deepspeed_load_checkpoint(trainer.model_wrapped, str(good), load_module_strict=whole)
    else:
        trainer._load_from_checkpoint(str(good))
    floor.restore(good)
    warn(f"training stopped ({floor.violated}); restored {good.name}")
