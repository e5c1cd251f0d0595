"""How far pass@1 before RL and the outcome after it disagree, pair of rungs by pair of rungs.

A pair of rungs of one seed is turned when the one with the higher pass@1 has the lower outcome,
and kept when it has the higher one; a tie on either side is neither. A turned pair is clear when
the 95 % intervals over prompts are apart on both sides: chance of prompts alone does not turn it.
Rank inversion in a seed: more pairs turned than kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from entropyfloor.echelon.rungs import Plan, Rung, interval, through_rl, value
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class SeedOrder:
    """pass@1 against the outcome in one seed."""

    rungs: int  # how many were compared
    kept: int  # pairs that pass@1 orders as the outcome does
    turned: int  # pairs that it orders the other way
    clear: int  # turned pairs whose intervals are apart in both
    # The rung of the highest pass@1, (loss, depth); the shallowest of equals
    picked: tuple[str, float]
    picked_outcome: float  # what it got
    picked_place: int  # its place by outcome, 1 is best; equals share the better place
    best: tuple[str, float]  # the rung of the best outcome
    best_outcome: float  # what that got
    apart: bool  # whether the outcomes of the two have intervals that are apart

    @property
    def inverted(self) -> bool:
        """More pairs are turned than kept."""
        return self.turned > self.kept


@dataclass(frozen=True)
class RankInversion:
    """One outcome over one scope (a loss, or None for all), seed by seed."""

    outcome: str
    scope: str | None
    by_seed: Mapping[int, SeedOrder]

    @property
    def inverted(self) -> tuple[int, ...]:
        """Seeds where pass@1 ranks in reverse."""
        return tuple(seed for seed, order in self.by_seed.items() if order.inverted)

    @property
    def turned(self) -> int:
        """Turned pairs of all seeds."""
        return sum(order.turned for order in self.by_seed.values())

    @property
    def clear(self) -> int:
        """Clear pairs of all seeds."""
        return sum(order.clear for order in self.by_seed.values())

    @property
    def pairs(self) -> int:
        """Pairs of all seeds that are kept or turned."""
        return self.turned + sum(order.kept for order in self.by_seed.values())


def rank_inversions(rungs: Sequence[Rung], plan: Plan) -> tuple[RankInversion, ...]:
    """Every outcome, over all losses and within each; a seed needs two rungs with an outcome."""
    measured = [rung for rung in rungs if value(rung.before, "pass_at_1") is not None]
    inversions = []
    for outcome in plan.outcomes:
        for scope in plan.scopes:
            by_seed = {
                seed: _order(sorted(here, key=lambda rung: rung.depth), outcome)
                for seed, here in sorted(through_rl(measured, scope).items())
                if len(here) >= 2
            }
            if by_seed:
                inversions.append(RankInversion(outcome, scope, by_seed))
    return tuple(inversions)


def _order(rungs: Sequence[Rung], outcome: str) -> SeedOrder:
    """Rungs of one seed, shallowest first."""
    kept = turned = clear = 0
    for one, other in combinations(rungs, 2):
        low, high = sorted((one, other), key=_pass_at_1)
        if _pass_at_1(low) == _pass_at_1(high):
            continue
        gain = high.outcomes[outcome].value - low.outcomes[outcome].value
        kept += gain > 0
        turned += gain < 0
        clear += (
            gain < 0
            and _apart(interval(low.before, "pass_at_1"), interval(high.before, "pass_at_1"))
            and _apart(high.outcomes[outcome].interval, low.outcomes[outcome].interval)
        )
    picked = max(rungs, key=_pass_at_1)
    best = max(rungs, key=lambda rung: rung.outcomes[outcome].value)
    got, most = picked.outcomes[outcome], best.outcomes[outcome]
    return SeedOrder(
        rungs=len(rungs),
        kept=kept,
        turned=turned,
        clear=clear,
        picked=(picked.loss, picked.depth),
        picked_outcome=got.value,
        picked_place=1 + sum(r.outcomes[outcome].value > got.value for r in rungs),
        best=(best.loss, best.depth),
        best_outcome=most.value,
        apart=_apart(got.interval, most.interval),
    )


def _pass_at_1(rung: Rung) -> float:
    rate = value(rung.before, "pass_at_1")
    assert rate is not None
    return rate


def _apart(lower: Interval | None, upper: Interval | None) -> bool:
    return lower is not None and upper is not None and lower.high < upper.low
