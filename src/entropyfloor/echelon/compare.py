"""An echelon's cells, compared: ladders along depth, predictors, rank inversion, selection rules.

    cells, base, plan ─► rungs  ─► ladder            every measure against depth, by loss
                                  ├─► frontier          rungs that nothing beats before RL
                                  ├─► pairs             problem by problem: losses, and RL
                                  ├─► predictor ranks   Spearman with the outcome after RL
                                  ├─► rank inversion    pass@1 against the outcome, pair by pair
                                  └─► rules             what each would have picked, and its regret

Only numbers that were handed in are used, in double precision, and the same cells give the same
comparison whatever order they come in. Cells that are missing are named and nothing breaks.

A rung is beaten by another that has at least as much entropy, pass@1 and pass@k, no more degenerate
groups, and is better in one of them. What nothing beats is the frontier: there, more of one is paid
for with another. Means over the seeds that both rungs have; in how many of these it holds by
itself says how far that is more than noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entropyfloor.echelon.paired import RungPair, rung_pairs
from entropyfloor.echelon.predictors import (
    PredictorRank,
    RankInversion,
    predictor_ranks,
    rank_inversions,
)
from entropyfloor.echelon.rungs import (
    METRICS,
    Metrics,
    Missing,
    Plan,
    Rung,
    read_rungs,
    value,
)
from entropyfloor.echelon.selection import RuleResult, rule_results
from entropyfloor.io import plain

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

    def pair(self, loss: str, depth: float, contrast: str) -> RungPair | None:
        """The differences of one rung."""
        wanted = (loss, depth, contrast)
        return next((p for p in self.pairs if (p.loss, p.depth, p.contrast) == wanted), None)

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
