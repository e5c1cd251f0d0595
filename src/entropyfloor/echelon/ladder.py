"""Every measure against depth, loss by loss, and which rungs nothing beats before RL.

A rung is beaten by another that has at least as much entropy, pass@1 and pass@k, no more degenerate
groups, and is better in one of them. What nothing beats is the frontier: there, more of one is paid
for with another. Means over the seeds that both rungs have; in how many of these it holds by
itself says how far that is more than noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entropyfloor.echelon.rungs import Metrics, Plan, Rung, value

BASE = "base"


@dataclass(frozen=True)
class Spread:
    """One number per seed, of the seeds that have one; at least one."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds there are."""
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.by_seed.values())

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.by_seed.values())


@dataclass(frozen=True)
class LadderRow:
    """A loss at a depth over all seeds."""

    loss: str  # the arm; base for the model before SFT
    depth: float  # epochs; 0 for the base
    before: Mapping[str, Spread]  # measure -> spread, before RL
    after: Mapping[str, Spread]  # the same at the last GRPO step
    outcomes: Mapping[str, Spread]  # outcome -> spread


def ladder_rows(
    rungs: Sequence[Rung], base: Mapping[int, Metrics], plan: Plan
) -> tuple[LadderRow, ...]:
    """One row for the base, if it was measured, and one per loss and depth that has a rung."""
    rows = [LadderRow(BASE, 0.0, _spreads(base, plan.metrics), {}, {})] if base else []
    for loss in plan.losses:
        for depth in plan.depths:
            here = [r for r in rungs if r.loss == loss and r.depth == depth]
            # Through RL or not at all: a last step that is not the plan's last compares to nothing.
            through = [r for r in here if r.outcomes]
            before = _spreads({r.seed: r.before for r in here}, plan.metrics)
            after = _spreads({r.seed: r.last or {} for r in through}, plan.metrics)
            outcomes = {
                name: Spread({r.seed: r.outcomes[name].value for r in through})
                for name in (plan.outcomes if through else ())
            }
            if here:
                rows.append(LadderRow(loss, depth, before, after, outcomes))
    return tuple(rows)


def _spreads(measured: Mapping[int, Metrics], names: Sequence[str]) -> dict[str, Spread]:
    spreads: dict[str, Spread] = {}
    for name in names:
        known = {seed: value(metrics, name) for seed, metrics in sorted(measured.items())}
        values = {seed: number for seed, number in known.items() if number is not None}
        if values:
            spreads[name] = Spread(values)
    return spreads


@dataclass(frozen=True)
class Beater:
    """A rung that beats another; in ``ahead`` of the ``seeds`` both have, by itself too."""

    loss: str
    depth: float
    ahead: int
    seeds: int


@dataclass(frozen=True)
class FrontierRung:
    """A rung and what beats it: nothing on the frontier, else those first that do in most seeds."""

    loss: str
    depth: float
    beaten_by: tuple[Beater, ...]


def frontier_metrics(rows: Sequence[LadderRow], plan: Plan) -> dict[str, int]:
    """Measure -> +1 where more is better, -1 where less is; those that every rung has."""
    wanted = dict.fromkeys(("entropy_nats", "pass_at_1", f"pass_at_{plan.outcome_k}"), 1)
    wanted["degenerate_fraction"] = -1
    rungs = [row for row in rows if row.loss != BASE]
    return {name: sign for name, sign in wanted.items() if all(name in r.before for r in rungs)}


def frontier(rows: Sequence[LadderRow], plan: Plan) -> tuple[FrontierRung, ...]:
    """Every rung with what beats it; empty for one loss or fewer than two shared measures."""
    metrics = frontier_metrics(rows, plan)
    if len(plan.losses) < 2 or len(metrics) < 2:
        return ()
    rungs = [row for row in rows if row.loss != BASE]
    return tuple(FrontierRung(r.loss, r.depth, _beaters(r, rungs, metrics)) for r in rungs)


def _beaters(
    row: LadderRow, rows: Sequence[LadderRow], metrics: Mapping[str, int]
) -> tuple[Beater, ...]:
    beaters = []
    for other in rows:
        known = [each.before[name].by_seed.keys() for each in (row, other) for name in metrics]
        seeds = sorted(set.intersection(*map(set, known)))
        if _ahead(other, row, seeds, metrics):
            alone = sum(_ahead(other, row, [seed], metrics) for seed in seeds)
            beaters.append(Beater(other.loss, other.depth, alone, len(seeds)))
    return tuple(sorted(beaters, key=lambda beater: -beater.ahead))


def _ahead(
    one: LadderRow, other: LadderRow, seeds: Sequence[int], metrics: Mapping[str, int]
) -> bool:
    gains = [
        sign * sum(one.before[name].by_seed[s] - other.before[name].by_seed[s] for s in seeds)
        for name, sign in metrics.items()
    ]
    return bool(seeds) and min(gains) >= 0 and max(gains) > 0
