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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.ranks import rank_and_processes
from entropyfloor.sft.floor.controller import FloorController
from entropyfloor.sft.floor.probe import ProbeResult, RolloutProbe
from entropyfloor.sft.floor.reference_model import OnsetModel
from entropyfloor.sft.run_record import read_record

logger = logging.getLogger(__name__)

_FIRST_PROBE = 10  # steps, where the interval is chosen by cost


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
        """Add a sum of entropy (nats) over scored tokens of this step, all ranks."""
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
            warn(
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

    def save(self, directory: Path, *, resumable: bool) -> dict[str, Any]:
        """The record; into a checkpoint's directory goes what `restore` needs beside it."""
        if self._onset is not None and resumable:
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
