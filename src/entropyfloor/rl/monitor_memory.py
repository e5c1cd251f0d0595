"""What a collapse monitor remembers from step to step: in checkpoints (as JSON), and in its log.

The log, ``collapse_monitor.jsonl`` in the run's folder, is for reports:

    {"event": "start", ...}     the run: steps compared, threshold, temperature, group size, rewards
    {"event": "step", ...}      step, entropy, groups, rates, relative drop
    {"event": "verdict", ...}   what stage 2 decided, at which step, what was done and saved

Written line by line. A run that resumes from a checkpoint first drops the lines of steps after it,
and a line that a kill cut short, so every step is there once.
"""

import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropyfloor.io import append_jsonl, read_jsonl, write_atomic
from entropyfloor.rl.collapse_rule import (
    WAITING,
    CollapseRule,
    Decision,
    Reading,
    began_collapsed,
    never_scored,
    saved_share,
)
from entropyfloor.rl.group_counts import GroupCounts

_log = logging.getLogger(__name__)
# Groups with a gradient before it is said that most of them have it from shaping (our choice).
_ENOUGH_GROUPS = 20


@dataclass
class MonitorMemory:
    """The state of one run."""

    # What stage 2 says; its verdict is waiting until the late step
    decision: Decision = Decision(WAITING, None, None, None, "training has not begun")  # noqa: RUF009
    # Groups seen so far, over all ranks
    counts: GroupCounts = GroupCounts()  # noqa: RUF009
    # (step, entropy in nats or None) of every step until the decision
    readings: list[Reading] = field(default_factory=list)
    # What the run samples at, and so what its entropies are of; None if the trainer does not say
    temperature: float | None = None
    message: str = ""  # one sentence on what was decided and done; empty until then
    stopped_at: int | None = None  # step at which the monitor ended the run; None if it did not
    # Step of the last checkpoint from before a collapse; None if there is none
    healthy_step: int | None = None
    restored: str | None = None  # path of the checkpoint whose weights were restored; None without
    # It was said that most gradients come from shaped rewards alone
    warned_of_shaping: bool = False

    def read(self, step: int, entropy: float | None) -> None:
        """Add a reading; nothing is kept once the decision is made."""
        if self.decision.verdict == WAITING:
            self.readings.append((step, number(entropy)))

    def sample_at(self, temperature: float | None, *, say: bool) -> None:
        """Take the run's sampling temperature; readings at another one are dropped."""
        before, self.temperature = self.temperature, temperature
        if self.readings and before != temperature and self.decision.verdict == WAITING:
            self.readings = []
            if say:
                _log.warning(
                    "the run was resumed at sampling temperature %s after %s: entropies at the two "
                    "cannot be compared, those before are dropped",
                    temperature,
                    before,
                )
        if say and temperature is not None and temperature != 1.0:
            _log.warning(
                "sampling temperature %g: the entropies here are of the distribution at that "
                "temperature. tau_2 was found at 1, and entropies elsewhere in entropyfloor are at "
                "1: compare these with neither",
                temperature,
            )

    def warn_of_shaping(self, *, say: bool) -> None:
        """Say once if most groups with a gradient all pass or all fail."""
        counts = self.counts
        enough = counts.groups - counts.degenerate >= _ENOUGH_GROUPS
        if self.warned_of_shaping or not enough or not counts.shaping_is_larger_part:
            return
        self.warned_of_shaping = True
        if say:
            _log.warning(
                "%d of %d groups with a gradient all pass or all fail, and only their shaped "
                "rewards differ: most of what this run learns says nothing about passing. Give "
                "harder or easier prompts (entropyfloor band), or weigh shaping less",
                counts.outcome_degenerate,
                counts.groups - counts.degenerate,
            )

    def judge(self, rule: CollapseRule, step: int, tau_h: float | None) -> bool:
        """Decide if it is time; whether the decision was made at this very step.

        Args:
            rule: stage 2.
            step: optimizer steps done.
            tau_h: see `CollapseMonitor`; None leaves out whether the run began collapsed.

        """
        if self.decision.verdict != WAITING:
            return False
        self.decision = rule.judge(self.readings, step)
        if self.decision.verdict == WAITING:
            return False
        if tau_h is not None and self.temperature in (None, 1.0):
            fraction = self.counts.degenerate / self.counts.groups if self.counts.groups else None
            began = began_collapsed(self.decision, tau_h, fraction)
            if began is not self.decision:
                self.decision, self.healthy_step = began, None  # no checkpoint is from before
        if not self.counts.groups:
            self.decision = never_scored(self.decision, self.counts.unscored)
        return True

    def verdict_record(self, step: int, steps: int) -> dict[str, Any]:
        """The decision as a record of the monitor's log."""
        stopped = self.stopped_at is not None
        return {
            "event": "verdict",
            "step": step,
            "verdict": self.decision.verdict,
            "relative_drop": self.decision.drop,
            "stopped": stopped,
            "saved_share": saved_share(step, steps) if stopped else 0.0,
            "restored": self.restored,
            "message": self.message,
        }

    @property
    def note_on_temperature(self) -> str:
        """What a message adds where entropies are not those at temperature 1."""
        if self.temperature is None or self.temperature == 1.0:
            return ""
        return f" (entropies at temperature {self.temperature:g}; tau_2 was found at 1)"


def number(value: Any) -> float | None:
    """A finite float or None: NaN is no JSON."""
    return float(value) if value is not None and math.isfinite(value) else None


FILE_NAME = "collapse_monitor.jsonl"


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """Read the records of a run, in order.

    Args:
        run: the run's output folder, or the file itself.

    Raises:
        FileNotFoundError: it was not monitored.

    """
    path = Path(run)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; train with callbacks=[CollapseMonitor()], or give another folder"
        )
    return read_jsonl(path)


def begin_log(path: Path, resumed_step: int, start: dict[str, Any]) -> None:
    """Start the file, or cut it back to ``resumed_step``, then add the ``start`` record."""
    records = read_jsonl(path) if resumed_step > 0 else []
    kept = [record for record in records if record.get("step", 0) <= resumed_step]
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    append_log(path, {"event": "start", **start})


def append_log(path: Path, record: dict[str, Any]) -> None:
    """Add one record; numbers that are not finite, which JSON does not have, become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    append_jsonl(path, [finite])
