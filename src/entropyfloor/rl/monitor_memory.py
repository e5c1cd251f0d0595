"""What a collapse monitor remembers from step to step, and how a checkpoint keeps it (as JSON)."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from entropyfloor.rl.group_counts import GroupCounts
from entropyfloor.rl.stage_two import WAITING, Decision, Reading


@dataclass
class MonitorMemory:
    """The state of one run.

    Attributes:
        decision: what stage 2 says; its verdict is ``waiting`` until the late step.
        counts: groups seen so far, over all ranks.
        readings: (step, entropy in nats or None) of every step until the decision.
        temperature: what the run samples at, and so what its entropies are of; None if the trainer
            does not say.
        message: one sentence on what was decided and done; empty until then.
        stopped_at: step at which the monitor ended the run; None if it did not.
        healthy_step: step of the last checkpoint from before a collapse; None if there is none.
        restored: path of the checkpoint whose weights were restored; None without.

    """

    decision: Decision = Decision(WAITING, None, None, None, "training has not begun")  # noqa: RUF009
    counts: GroupCounts = GroupCounts()  # noqa: RUF009
    readings: list[Reading] = field(default_factory=list)
    temperature: float | None = None
    message: str = ""
    stopped_at: int | None = None
    healthy_step: int | None = None
    restored: str | None = None

    def read(self, step: int, entropy: float | None) -> None:
        """Add a reading; nothing is kept once the decision is made."""
        if self.decision.verdict == WAITING:
            self.readings.append((step, number(entropy)))

    def to_dict(self) -> dict[str, Any]:
        """JSON data that :meth:`from_dict` turns back into the same state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "MonitorMemory":
        """Build it from :meth:`to_dict`, also after a way through JSON."""
        decision = dict(found["decision"])
        for name in ("early", "late"):
            decision[name] = None if decision[name] is None else tuple(decision[name])
        return cls(
            **{
                **found,
                "decision": Decision(**decision),
                "counts": GroupCounts(**found["counts"]),
                "readings": [(int(step), value) for step, value in found["readings"]],
            }
        )


def number(value: Any) -> float | None:
    """A finite float or None: NaN is no JSON."""
    return float(value) if value is not None and math.isfinite(value) else None
