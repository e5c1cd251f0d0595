"""Every measure against depth, loss by loss: the value of each seed, their mean and their range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entropyfloor.echelon.rungs import Measures, Plan, Rung, value

BASE = "base"


@dataclass(frozen=True)
class Spread:
    """One number per seed.

    Attributes:
        by_seed: seed -> value, of the seeds that have one; at least one.

    """

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
class CourseRow:
    """A loss at a depth over all seeds.

    Attributes:
        loss: the arm; ``base`` for the model before SFT.
        depth: epochs; 0 for the base.
        before: measure -> spread, before RL.
        after: the same at the last GRPO step.
        outcomes: outcome -> spread.

    """

    loss: str
    depth: float
    before: Mapping[str, Spread]
    after: Mapping[str, Spread]
    outcomes: Mapping[str, Spread]


def measure_names(plan: Plan) -> tuple[str, ...]:
    """What is followed along the ladder, in reading order."""
    names = ("entropy_nats", "pass_at_1", f"pass_at_{plan.outcome_k}", "degenerate_fraction")
    return tuple(dict.fromkeys((*names, "unique_fraction", "held_out_loss")))


def predictor_names(plan: Plan) -> tuple[str, ...]:
    """What may foretell the outcome; all of it is known before RL."""
    names = list(measure_names(plan))
    names.insert(names.index("degenerate_fraction") + 1, "p_hat_over_p_star")
    return tuple(names)


def course(rungs: Sequence[Rung], base: Mapping[int, Measures], plan: Plan) -> list[CourseRow]:
    """One row for the base, if it was measured, and one per loss and depth that has a rung."""
    names = measure_names(plan)
    rows = []
    if base:
        rows.append(CourseRow(BASE, 0.0, _spreads(base, names), {}, {}))
    for loss in plan.losses:
        for depth in plan.depths:
            here = [r for r in rungs if r.loss == loss and r.depth == depth]
            if not here:
                continue
            # Through RL or not at all: a last step that is not the plan's last compares to nothing.
            through = [r for r in here if r.outcomes]
            rows.append(
                CourseRow(
                    loss,
                    depth,
                    _spreads({r.seed: r.before for r in here}, names),
                    _spreads({r.seed: r.last or {} for r in through}, names),
                    {
                        name: Spread({r.seed: r.outcomes[name].value for r in through})
                        for name in (plan.outcomes if through else ())
                    },
                )
            )
    return rows


def _spreads(measured: Mapping[int, Measures], names: Sequence[str]) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for name in names:
        known = {seed: value(measures, name) for seed, measures in sorted(measured.items())}
        values = {seed: number for seed, number in known.items() if number is not None}
        if values:
            found[name] = Spread(values)
    return found
