"""Which panels an echelon's plots have, what their curves are, and where depths stand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.ladder import BASE, LadderRow, Spread
from entropyfloor.echelon.measure_names import title


@dataclass(frozen=True)
class Panel:
    """A measure against depth, before or after RL.

    Attributes:
        measure: before RL; also the name that the two panels of a pair share.
        after: None before RL; else what is shown of it: an outcome, or a measure at the last step.
        heading: in words.

    """

    measure: str
    after: str | None
    heading: str

    def spread(self, row: LadderRow) -> Spread | None:
        """What the panel shows of a rung."""
        if self.after is None:
            return row.before.get(self.measure)
        return row.outcomes.get(self.after, row.after.get(self.after))


def panels(comparison: EchelonComparison) -> list[Panel]:
    """Entropy, pass@1, pass@k, degenerate groups before RL, each with its counterpart after RL."""
    plan = comparison.plan
    through = any(row.outcomes for row in comparison.ladder)
    found = []
    names = ("entropy_nats", "pass_at_1", f"pass_at_{plan.outcome_k}", "degenerate_fraction")
    for measure in dict.fromkeys(names):
        name = "entropy (nats)" if measure == "entropy_nats" else title(measure)
        found.append(Panel(measure, None, f"{name} before RL"))
        if through and measure.startswith("pass_at_"):
            found.append(Panel(measure, f"peak_{measure}", f"peak {name} after RL"))
        elif through:
            found.append(Panel(measure, measure, f"{name} after the last step of RL"))
    return [panel for panel in found if any(panel.spread(row) for row in comparison.ladder)]


def ladder(comparison: EchelonComparison, loss: str, panel: Panel) -> list[tuple[float, Spread]]:
    """``(depth, spread)`` of one loss, shallowest first."""
    found = [(row.depth, panel.spread(row)) for row in comparison.ladder if row.loss == loss]
    return [(depth, spread) for depth, spread in found if spread is not None]


def all_spreads(comparison: EchelonComparison, measure: str) -> list[Spread]:
    """Everything that the panels of a measure show: they share their scale."""
    pair = [panel for panel in panels(comparison) if panel.measure == measure]
    return [s for panel in pair for row in comparison.ladder if (s := panel.spread(row))]


def base_spread(comparison: EchelonComparison, panel: Panel) -> Spread | None:
    """The base model's, in panels before RL."""
    row = comparison.row(BASE, 0.0)
    return None if row is None or panel.after is not None else panel.spread(row)


def logarithmic(depths: Sequence[float]) -> bool:
    """Whether depths are spread so widely that shallow ones would fall onto each other."""
    return min(depths) > 0 and max(depths) / min(depths) > 8


def rounded_range(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of a share's axis: tenths around the values, inside [0, 1]."""
    low = max(0.0, math.floor(10 * min(values) - 0.2) / 10)
    high = min(1.0, math.ceil(10 * max(values) + 0.2) / 10)
    return low, max(high, low + 0.1)
