"""Stage 2 of screening: has the entropy of a GRPO run collapsed? Plain arithmetic on readings.

    drop = (H(early) - H(late)) / H(early)          collapsed if drop > tau_2

Source: rank-inversion paper, arXiv 2606.18487: steps 10 and 150 of a run of 400, tau_2 = 0.50; a
collapsed run is stopped, which saves 250 of 400 steps. For a run of another length both steps are
scaled in proportion.

A *reading* is (optimizer step, mean entropy of that step's tokens in nats, or None). Real runs have
holes in them, so H(s) is, in this order:

    the mean of the finite readings at steps s - window + 1 ... s   (window 1: the one at s)
    the first finite reading after s, at most ``tolerance`` steps later

and where there is neither the verdict is ``unknown``, never a guess. A step that was run twice (a
restart) counts with its last reading. The decision is made once; what comes after the late step
does not change it.

A run that *began* collapsed has no entropy left to fall. With the counts of its groups it is told
all the same: entropy at the early step below tau_H (stage 1's threshold, at temperature 1), and
more than half of the groups so far degenerate. That rule is ours, not the paper's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

TAU_2 = 0.50
PAPER_STEPS, PAPER_EARLY, PAPER_LATE = 400, 10, 150

WAITING, HEALTHY, COLLAPSED, UNKNOWN = "waiting", "healthy", "collapsed", "unknown"

Reading = tuple[int, float | None]


@dataclass(frozen=True)
class Decision:
    """What stage 2 says of a run."""

    verdict: str  # waiting, healthy, collapsed or unknown
    drop: float | None  # relative drop of the entropy, in (-inf, 1]; None without both readings
    early: tuple[int, float] | None  # (step, nats) that were compared; None if there is no reading
    late: tuple[int, float] | None  # the same
    reason: str  # one sentence


@dataclass(frozen=True)
class CollapseRule:
    """The rule for one run; build it with :meth:`for_run`."""

    early_step: int  # optimizer step of the first entropy
    late_step: int  # optimizer step of the second, and of the decision
    tau_2: float = TAU_2  # relative drop above which the run has collapsed, in (0, 1)
    window: int = 1  # how many steps up to each of the two are averaged
    tolerance: int = 0  # how many steps later a missing reading may be replaced

    def __post_init__(self) -> None:
        if not 0.0 < self.tau_2 < 1.0:
            raise ValueError(
                f"tau_2 is a relative drop between 0 and 1 (the paper's is {TAU_2}); got "
                f"{self.tau_2}"
            )
        if not 1 <= self.early_step < self.late_step:
            raise ValueError(
                "stage 2 compares an early with a later step, 1 <= early_step < late_step; got "
                f"{self.early_step} and {self.late_step}"
            )
        if self.window < 1:
            raise ValueError(f"window is a number of steps, 1 or more; got {self.window}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is a number of steps, 0 or more; got {self.tolerance}")

    @classmethod
    def for_run(
        cls,
        max_steps: int,
        *,
        tau_2: float = TAU_2,
        early_step: int | None = None,
        late_step: int | None = None,
        window: int = 1,
    ) -> "CollapseRule":
        """The paper's steps scaled to a run of ``max_steps`` optimizer steps; 10 and 150 of 400.

        Args:
            max_steps: length of the run.
            tau_2: see :class:`CollapseRule`.
            early_step: a step of this run to use instead of the scaled one.
            late_step: the same.
            window: see :class:`CollapseRule`.

        """
        if max_steps < 1:
            raise ValueError(f"a run has 1 step or more; got max_steps = {max_steps}")
        early = scaled(PAPER_EARLY, max_steps) if early_step is None else early_step
        late = scaled(PAPER_LATE, max_steps) if late_step is None else late_step
        if early_step is None and late_step is None:
            late = max(early + 1, late)  # both are step 1 of a run of two
        return cls(early, late, tau_2, window, tolerance=max(1, (late - early) // 4))

    def entropy_at(self, readings: Iterable[Reading], step: int) -> tuple[int, float] | None:
        """H(step) as the module defines it, with the step it was read at; None if there is none."""
        known = finite(readings)
        inside = [known[s] for s in range(step - self.window + 1, step + 1) if s in known]
        if inside:
            return step, math.fsum(inside) / len(inside)
        later = [s for s in known if step < s <= step + self.tolerance]
        return (min(later), known[min(later)]) if later else None

    def drop_at(self, readings: Sequence[Reading], step: int) -> float | None:
        """Relative drop from the early step to ``step``; None where it is not known."""
        early = self.entropy_at(readings, self.early_step)
        now = self.entropy_at([r for r in readings if r[0] <= step], step)
        if early is None or now is None or early[1] <= 0.0 or step <= early[0]:
            return None
        return 1.0 - now[1] / early[1]

    def judge(self, readings: Sequence[Reading], step: int) -> Decision:
        """Decide from the readings up to optimizer step ``step``.

        Returns:
            ``waiting`` before the late step, and after it for as long as a reading may still come.

        """
        readings = [r for r in readings if r[0] <= step]
        early = self.entropy_at(readings, self.early_step)
        late = self.entropy_at(readings, self.late_step) if step >= self.late_step else None
        if step < self.late_step or (late is None and step < self.late_step + self.tolerance):
            return Decision(WAITING, None, early, None, f"decided at step {self.late_step}")
        if early is None or late is None:
            missing = self.early_step if early is None else self.late_step
            reason = (
                f"no entropy was read at step {missing} or in the {self.tolerance} steps after it: "
                "log it more often, or set early_step and late_step to steps that are logged"
            )
            return Decision(UNKNOWN, None, early, late, reason)
        if early[1] <= 0.0:
            reason = (
                f"the entropy was {early[1]:.3g} nats at step {early[0]} already: there is nothing "
                "to fall, the run began collapsed"
            )
            return Decision(UNKNOWN, None, early, late, reason)
        drop = 1.0 - late[1] / early[1]
        collapsed = late[1] < (1.0 - self.tau_2) * early[1]  # drop > tau_2, without its rounding
        way = "fell" if drop >= 0 else "rose"
        reason = (
            f"entropy {way} {abs(drop):.1%} from {early[1]:.3g} nats at step {early[0]} to "
            f"{late[1]:.3g} at step {late[0]}, {'more' if collapsed else 'not more'} than tau_2 = "
            f"{self.tau_2:.0%}"
        )
        return Decision(COLLAPSED if collapsed else HEALTHY, drop, early, late, reason)


def began_collapsed(
    decision: Decision, tau_h: float, degenerate_fraction: float | None
) -> Decision:
    """The decision, or ``collapsed`` where the run began without entropy and starves.

    Args:
        decision: stage 2's, made.
        tau_h: nats.
        degenerate_fraction: of the groups up to the late step; None if none were counted.

    """
    early = decision.early
    starved = degenerate_fraction is not None and degenerate_fraction > 0.5
    if decision.verdict == COLLAPSED or early is None or early[1] >= tau_h or not starved:
        return decision
    reason = (
        f"it began collapsed: entropy was {early[1]:.3g} nats at step {early[0]}, below tau_H = "
        f"{tau_h:g}, and {degenerate_fraction:.0%} of the groups since then agree on their reward "
        "and teach nothing"
    )
    return replace(decision, verdict=COLLAPSED, reason=reason)


def never_scored(decision: Decision, unscored: int) -> Decision:
    """The decision, or ``unknown`` in place of ``healthy`` where no rollout ever got a reward.

    Args:
        decision: stage 2's, made.
        unscored: groups without any reward; 0 where none were counted.

    """
    if decision.verdict != HEALTHY or not unscored:
        return decision
    reason = (
        f"cannot tell: no rollout of {unscored} groups was scored, so the run learned nothing that "
        f"its entropy could show ({decision.reason}); check that the reward function gives numbers"
    )
    return replace(decision, verdict=UNKNOWN, reason=reason)


def scaled(step: int, max_steps: int) -> int:
    """Scale a step of the paper's 400 to a run of ``max_steps``: half up, at least 1."""
    return max(1, (2 * step * max_steps + PAPER_STEPS) // (2 * PAPER_STEPS))


def finite(readings: Iterable[Reading]) -> dict[int, float]:
    """Step -> entropy of the readings that are numbers; the last one of a step counts."""
    known: dict[int, float] = {}
    for step, value in readings:
        if value is not None and math.isfinite(value):
            known[step] = float(value)
        else:
            known.pop(step, None)
    return known


def saved_share(stop_step: int, max_steps: int) -> float:
    """Share of the run's steps that stopping after ``stop_step`` leaves out, in [0, 1)."""
    return 1.0 - min(stop_step, max_steps) / max_steps
