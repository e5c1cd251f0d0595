"""Which rungs nothing beats before RL.

A rung is beaten by another that has at least as much entropy, pass@1 and pass@k, no more degenerate
groups, and is better in one of them. What nothing beats is the frontier: there, more of one is paid
for with another. Means over the seeds that both rungs have; in how many of these it holds by
itself says how far that is more than noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entropyfloor.echelon.ladder_course import BASE, CourseRow
from entropyfloor.echelon.rungs import Plan


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


def frontier_measures(course: Sequence[CourseRow], plan: Plan) -> dict[str, int]:
    """Measure -> +1 where more is better, -1 where less is; those that every rung has."""
    wanted = {
        "entropy_nats": 1,
        "pass_at_1": 1,
        f"pass_at_{plan.outcome_k}": 1,
        "degenerate_fraction": -1,
    }
    rows = [row for row in course if row.loss != BASE]
    return {name: sign for name, sign in wanted.items() if all(name in r.before for r in rows)}


def frontier(course: Sequence[CourseRow], plan: Plan) -> tuple[FrontierRung, ...]:
    """Every rung with what beats it; empty where fewer than two measures can be compared."""
    measures = frontier_measures(course, plan)
    rows = [row for row in course if row.loss != BASE]
    if len(measures) < 2:
        return ()
    return tuple(FrontierRung(row.loss, row.depth, _beaters(row, rows, measures)) for row in rows)


def _beaters(
    row: CourseRow, rows: Sequence[CourseRow], measures: Mapping[str, int]
) -> tuple[Beater, ...]:
    found = []
    for other in rows:
        known = [each.before[name].by_seed.keys() for each in (row, other) for name in measures]
        seeds = sorted(set.intersection(*map(set, known)))
        if _ahead(other, row, seeds, measures):
            alone = sum(_ahead(other, row, [seed], measures) for seed in seeds)
            found.append(Beater(other.loss, other.depth, alone, len(seeds)))
    return tuple(sorted(found, key=lambda beater: -beater.ahead))


def _ahead(
    one: CourseRow, other: CourseRow, seeds: Sequence[int], measures: Mapping[str, int]
) -> bool:
    gains = [
        sign * sum(one.before[name].by_seed[s] - other.before[name].by_seed[s] for s in seeds)
        for name, sign in measures.items()
    ]
    return bool(seeds) and min(gains) >= 0 and max(gains) > 0
