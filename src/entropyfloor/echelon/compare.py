"""An echelon's cells, compared: ladders along depth, predictors, rank inversion, selection rules.

    cells, base, plan ─► rungs  ─► ladder            every measure against depth, by loss
                                  ├─► frontier          rungs that nothing beats before RL
                                  ├─► pairs             problem by problem: losses, and RL
                                  ├─► predictor ranks   Spearman with the outcome after RL
                                  ├─► rank inversion    pass@1 against the outcome, pair by pair
                                  └─► rules             what each would have picked, and its regret

Only numbers that were handed in are used, in double precision, and the same cells give the same
comparison whatever order they come in. Cells that are missing are named and nothing breaks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entropyfloor.echelon.ladder import BASE, FrontierRung, LadderRow, Spread, frontier, ladder_rows
from entropyfloor.echelon.paired import RungPair, rung_pairs
from entropyfloor.echelon.predictors import PredictorRank, predictor_ranks
from entropyfloor.echelon.rank_inversion import RankInversion, rank_inversions
from entropyfloor.echelon.rungs import (
    METRICS,
    Metrics,
    Missing,
    Plan,
    Rung,
    read_rungs,
)
from entropyfloor.echelon.selection import RuleResult, rule_results
from entropyfloor.io import plain

SCHEMA = "entropyfloor.echelon"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EchelonComparison:
    """What an echelon found."""

    plan: Plan
    rungs: tuple[Rung, ...]  # cells that were at least screened, by loss, depth and seed
    # Seed -> measures of the model before SFT; empty if it was not screened
    base: Mapping[int, Metrics]
    missing: tuple[Missing, ...]  # cells of the plan without an outcome, and why
    ladder: tuple[LadderRow, ...]  # measures against depth
    frontier: tuple[FrontierRung, ...]  # what beats each rung before RL; empty without two losses
    pairs: tuple[RungPair, ...]  # differences problem by problem, with intervals
    ranks: tuple[PredictorRank, ...]  # predictors against outcomes; empty without outcomes
    inversions: tuple[RankInversion, ...]  # pass@1 against outcomes; empty without outcomes
    rules: tuple[RuleResult, ...]  # selection rules; empty without outcomes

    @property
    def seconds(self) -> float:
        """That all cells took together."""
        return sum(rung.seconds for rung in self.rungs)

    def inversion(self, outcome: str, scope: str | None) -> RankInversion | None:
        """pass@1 against one outcome, over one loss or all (None)."""
        matching = (i for i in self.inversions if (i.outcome, i.scope) == (outcome, scope))
        return next(matching, None)

    def ranks_of(self, outcome: str, scope: str | None) -> list[PredictorRank]:
        """Every predictor of one outcome, over one loss or all (None)."""
        return [r for r in self.ranks if (r.outcome, r.scope) == (outcome, scope)]

    def rules_of(self, scope: str | None) -> list[RuleResult]:
        """Every rule, over one loss or all (None)."""
        return [r for r in self.rules if r.scope == scope]

    def row(self, loss: str, depth: float) -> LadderRow | None:
        """A loss at a depth over all seeds."""
        return next((r for r in self.ladder if (r.loss, r.depth) == (loss, depth)), None)

    @property
    def shown_scopes(self) -> tuple[str | None, ...]:
        """What is shown of them: all losses (None), if there are several, and the reference."""
        return tuple(dict.fromkeys((self.plan.scopes[0], self.plan.reference)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. ``rows`` is flat, a line of a CSV file each."""
        document: dict[str, Any] = plain(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "plan": asdict(self.plan),
                "missing": [asdict(cell) for cell in self.missing],
                "rows": list(self._rows()),
                "course": [_ladder_document(row) for row in self.ladder],
                "frontier": [asdict(rung) for rung in self.frontier],
                "pairs": [asdict(pair) for pair in self.pairs],
                "predictors": [{**asdict(rank), "aim": rank.aim} for rank in self.ranks],
                "rank_inversion": [asdict(inversion) for inversion in self.inversions],
                "rules": [_rule_document(rule, self.plan) for rule in self.rules],
                "seconds": self.seconds,
            }
        )
        return document

    def _rows(self) -> Iterator[dict[str, Any]]:
        for seed, metrics in sorted(self.base.items()):
            yield _flat(BASE, seed, 0.0, None, metrics)
        for rung in self.rungs:
            yield _flat(rung.loss, rung.seed, rung.depth, None, rung.before)
            for step, metrics in rung.after.items():
                yield _flat(rung.loss, rung.seed, rung.depth, step, metrics)


def compare(
    cells: Sequence[Mapping[str, Any]], base: Mapping[int, Metrics], plan: Plan
) -> EchelonComparison:
    """Compare the cells of an echelon.

    Args:
        cells: ``{"loss", "seed", "depth", "before", "after": {step: metrics}, "seconds": {stage:
            number}}`` each, with metrics as ``rungs.metrics`` gives them.
        base: seed -> metrics of the model before SFT.
        plan: which cells there should be.

    """
    rungs, missing = read_rungs(cells, plan)
    measured = {int(seed): metrics for seed, metrics in base.items()}
    rows = ladder_rows(rungs, measured, plan)
    return EchelonComparison(
        plan=plan,
        rungs=rungs,
        base=dict(sorted(measured.items())),
        missing=missing,
        ladder=rows,
        frontier=frontier(rows, plan),
        pairs=rung_pairs(rungs, plan),
        ranks=predictor_ranks(rungs, plan),
        inversions=rank_inversions(rungs, plan),
        rules=rule_results(rungs, plan),
    )


def _flat(loss: str, seed: int, depth: float, step: int | None, metrics: Metrics) -> dict[str, Any]:
    row: dict[str, Any] = {"loss": loss, "seed": seed, "depth": depth, "grpo_step": step}
    row |= {name: metrics.get(name) for name in METRICS}
    return row | {f"pass_at_{k}": v for k, v in metrics.get("pass_at_k", {}).items()}


def _ladder_document(row: LadderRow) -> dict[str, Any]:
    def spreads(by_name: Mapping[str, Spread]) -> dict[str, Any]:
        return {
            n: {"mean": s.mean, "low": s.low, "high": s.high, **asdict(s)}
            for n, s in by_name.items()
        }

    return {
        "loss": row.loss,
        "depth": row.depth,
        "before": spreads(row.before),
        "after_last_step": spreads(row.after),
        "outcomes": spreads(row.outcomes),
    }


def _rule_document(rule: RuleResult, plan: Plan) -> dict[str, Any]:
    document = asdict(rule)
    document["mean_outcome"] = {name: rule.mean(name) for name in plan.outcomes}
    document["mean_regret"] = {name: rule.regret(name) for name in plan.outcomes}
    return document
