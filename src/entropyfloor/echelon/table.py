"""The tables of an echelon, each made once: for the page, as Markdown and for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from rich.console import RenderableType
from rich.text import Text

from entropyfloor.echelon.answer import answer, frontier_words
from entropyfloor.echelon.compare import (
    Beater,
    EchelonComparison,
    LadderRow,
    Spread,
    frontier_metrics,
)
from entropyfloor.echelon.predictors import predictors
from entropyfloor.echelon.rungs import (
    count,
    epochs,
    outcome_words,
    rung_name,
    seed_words,
    short_number,
    title,
)
from entropyfloor.echelon.selection import RECOMMENDED, Pick
from entropyfloor.render.table import Cell, Column, Table
from entropyfloor.render.text import markdown, plain
from entropyfloor.screening.paired import Difference

_LADDER = (Column("loss", "left"), Column("epochs"))


def echelon_markdown(comparison: EchelonComparison) -> str:
    """Write the answer and every table as GitHub-flavoured Markdown."""
    parts = ["# Echelon", *map(markdown, answer(comparison))]
    for table in tables(comparison):
        parts += [f"## {markdown(table.title)}", table.to_markdown(), markdown(table.note)]
    return "\n\n".join(parts) + "\n"


def echelon_terminal(comparison: EchelonComparison, width: int) -> Iterator[RenderableType]:
    """Yield what a rich console prints: ladder and rules, as far as they fit, and the answer."""
    for table in tables(comparison):
        if table.key in ("before", "after", "pairs", "rules"):
            yield table.to_rich(width)
    yield from (Text(plain(words)) for words in answer(comparison))


def tables(comparison: EchelonComparison) -> list[Table]:
    """What there is to show, in reading order."""
    scopes = comparison.shown_scopes
    made = [before_table(comparison), after_table(comparison), pairs_table(comparison)]
    made += [rules_table(comparison, scope) for scope in scopes]
    made += [ranks_table(comparison, scope) for scope in scopes]
    if len(comparison.plan.losses) > 1:
        made.append(within_table(comparison))
    return [table for table in [*made, missing_table(comparison)] if table.rows]


def before_table(comparison: EchelonComparison) -> Table:
    """Measures before RL by loss and depth, and what beats a rung."""
    plan, rows = comparison.plan, comparison.ladder
    beaten = {(rung.loss, rung.depth): _beaten(rung.beaten_by) for rung in comparison.frontier}
    names = [name for name in plan.metrics if any(name in row.before for row in rows)]
    note = f"Degenerate: groups of {plan.group_size} rollouts whose rewards all agree."
    columns = [*_LADDER, *_columns(names)]
    cells = [[*_rung(row), *_spreads(row.before, names, plan.seeds)] for row in rows]
    if beaten:
        # Beside what is compared: a desk's screen shows it without scrolling.
        place = len(_LADDER) + len(frontier_metrics(rows, plan))
        columns.insert(place, Column("beaten by", importance=3))
        for row, line in zip(rows, cells, strict=True):
            line.insert(place, beaten.get((row.loss, row.depth), ""))  # the base takes no part
        note += (
            f" Beaten by: a rung with {frontier_words(comparison)}, in the mean of the seeds, and "
            "in how many of them by itself; a dash: none, it is on the frontier."
        )
    return _ladder_table("Before RL", columns, rows, cells, f"{_means(comparison)} {note}")


def after_table(comparison: EchelonComparison) -> Table:
    """Outcomes, and measures at the last step, by loss and depth."""
    plan, rows = comparison.plan, [row for row in comparison.ladder if row.outcomes]
    names = [n for n in plan.metrics if any(n in r.after for r in rows) and "pass_at" not in n]
    columns = [*_LADDER, *_columns(plan.outcomes), *_columns(names, "last ", least=1)]
    cells = [
        [
            *_rung(row),
            *_spreads(row.outcomes, plan.outcomes, plan.seeds),
            *_spreads(row.after, names, plan.seeds),
        ]
        for row in rows
    ]
    note = (
        f"{_means(comparison)} Peak: best of GRPO steps {', '.join(map(str, plan.grpo_steps))}, "
        f"an optimistic number; last: step {max(plan.grpo_steps, default=0)}."
    )
    return _ladder_table("After RL", columns, rows, cells, note)


def pairs_table(comparison: EchelonComparison) -> Table:
    """Differences problem by problem: to the reference loss, along depth, and through RL."""
    plan = comparison.plan
    names = dict.fromkeys(d.metric for pair in comparison.pairs for d in pair.differences)
    outcomes = (f"pass_at_{plan.outcome_k}", "pass_at_1")  # a narrow terminal shows these first
    columns = [Column(title(name), importance=name not in outcomes) for name in names]
    rows: list[tuple[Cell | str, ...]] = []
    for pair in comparison.pairs:
        cells = (_difference(pair.difference(name), pair.by_seed) for name in names)
        rows.append((pair.loss, f"{pair.depth:g}", pair.contrast, *cells))
    shallowest = (
        f"To {epochs(plan.depths[0])}: the deepest checkpoint of a loss less its shallowest. "
    )
    along = shallowest if len(plan.depths) > 1 else ""
    return Table(
        "What differs, problem by problem",
        (*_LADDER, Column("difference", "left"), *columns),
        tuple(rows),
        f"To {plan.reference}: this loss less {plan.reference} at the same depth. {along}Through "
        "RL: the last GRPO step less the start. Both sides answer the same held-out problems; "
        "those of all seeds are pooled. Beside each its 95 % interval over problems, which leaves "
        "out how much other runs would differ, and in how many seeds the difference has the same "
        "sign.",
        "pairs",
        frozenset(i for i, (row, after) in enumerate(pairwise(rows)) if row[:1] != after[:1]),
    )


def rules_table(comparison: EchelonComparison, scope: str | None) -> Table:
    """What each rule picked in each seed, what it got, and the regret."""
    outcome, rules = comparison.plan.outcome, comparison.rules_of(scope)
    seeds = list(rules[0].by_seed) if rules else []
    columns = (
        Column("rule", "left"),
        *(Column(f"seed {seed}", importance=1) for seed in seeds),
        Column("mean"),
        Column("regret"),
    )
    rows: list[tuple[Cell | str, ...]] = []
    for rule in rules:
        picks = rule.by_seed.values()
        chose = (
            "" if rule.chosen() == len(seeds) else f"{rule.chosen()} of {count(len(seeds), 'seed')}"
        )
        regrets = seed_words(pick.regret(outcome) for pick in picks)
        mean = Cell(_number(rule.mean(outcome)), chose)
        regret = Cell(_number(rule.regret(outcome)), regrets)
        rows.append((rule.rule, *(_pick(pick, outcome, scope) for pick in picks), mean, regret))
    return Table(
        f"Which checkpoint to start RL from, {_where(scope)}",
        columns,
        tuple(rows),
        f"In every seed {outcome_words(outcome)} of the rung that the rule picked. Regret: the "
        "best of the seed less that.",
        _key("rules", comparison, scope),
    )


def ranks_table(comparison: EchelonComparison, scope: str | None) -> Table:
    """Spearman of every predictor with the outcomes; empty where too few rungs went through RL."""
    plan = comparison.plan
    rows: list[tuple[Cell | str, ...]] = []
    ranks = comparison.ranks_of(plan.outcome, scope)
    headers = ("Spearman", "95 % interval", "p", "pooled", "points", *map(title, plan.outcomes[1:]))
    means = {(r.outcome, r.predictor): r.mean for r in comparison.ranks if r.scope == scope}
    for rank in ranks if any(rank.pooled is not None for rank in ranks) else ():
        ends, p = rank.interval, rank.p_value
        seeds = seed_words((rank.by_seed.get(seed) for seed in plan.seeds), "+.2f")
        rows.append(
            (
                title(rank.predictor),
                Cell(_signed(rank.mean), seeds),
                "–" if ends is None else f"{ends.low:+.2f} to {ends.high:+.2f}",
                "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}",
                _signed(rank.pooled),
                f"{rank.points}",
                *(_signed(means[outcome, rank.predictor]) for outcome in plan.outcomes[1:]),
            )
        )
    return Table(
        f"Which measure before RL foretells {outcome_words(plan.outcome)}, {_where(scope)}",
        (Column("predictor", "left"), *map(Column, headers)),
        tuple(rows),
        "Spearman: mean over seeds, each seed beside it; its interval is over seeds (t); p "
        "permutes outcomes within seeds and is not corrected for the number of predictors; pooled "
        "takes the points of all seeds together. p̂/p* is pass@1 divided by a constant and has its "
        "ranks. Last columns: the mean Spearman with other outcomes. Less is better for degenerate "
        "fraction and held-out loss, so −1 is their best.",
        _key("ranks", comparison, scope),
    )


def within_table(comparison: EchelonComparison) -> Table:
    """Every loss by itself: pairs turned around, regret of pass@1, rank correlations."""
    plan = comparison.plan
    names = [name for name in predictors(plan) if name != "p_hat_over_p_star"]
    rules = {(rule.scope, rule.rule): rule.regret(plan.outcome) for rule in comparison.rules}
    ranks = {(r.scope, r.predictor): r.mean for r in comparison.ranks if r.outcome == plan.outcome}
    compared = ("highest pass@1", RECOMMENDED)
    headers = ["pairs turned", "seeds inverted", *(f"regret of {rule}" for rule in compared)]
    headers += [f"Spearman of {title(name)}" for name in names]
    rows = tuple(
        (
            i.scope,
            f"{i.turned} of {i.pairs}",
            f"{len(i.inverted)} of {len(i.by_seed)}",
            *(_number(rules.get((i.scope, rule))) for rule in compared),
            *(_signed(ranks.get((i.scope, name))) for name in names),
        )
        for i in comparison.inversions
        if i.outcome == plan.outcome and i.scope is not None
    )
    note = (
        "Each loss by itself, over its depths. Pairs turned: of two rungs of a seed, the one with "
        f"the higher pass@1 has the lower {outcome_words(plan.outcome)}. Regret and Spearman are "
        "means over seeds."
    )
    columns = (Column("loss", "left"), *map(Column, headers))
    return Table("Loss by loss", columns, rows, note, "within")


def missing_table(comparison: EchelonComparison) -> Table:
    """Cells without an outcome."""
    columns = (Column("cell", "left"), Column("seed"), Column("what is missing", "left"))
    rows = [(rung_name(c.loss, c.depth), f"{c.seed}", c.why) for c in comparison.missing]
    note = "Left out of whatever compares outcomes."
    return Table("Missing", columns, tuple(rows), note, "missing")


def _ladder_table(
    heading: str,
    columns: Sequence[Column],
    rows: Sequence[LadderRow],
    cells: Sequence[Sequence[Cell | str]],
    note: str,
) -> Table:
    ends = (i for i, (row, after) in enumerate(pairwise(rows)) if row.loss != after.loss)
    key = heading.split()[0].lower()
    return Table(heading, tuple(columns), tuple(map(tuple, cells)), note, key, frozenset(ends))


def _columns(names: Sequence[str], before: str = "", *, least: int = 0) -> list[Column]:
    """Those further on matter less to a narrow terminal."""
    return [
        Column(f"{before}{title(name)}", importance=max(least, place // 4))
        for place, name in enumerate(names)
    ]


def _rung(row: LadderRow) -> tuple[str, str]:
    return row.loss, f"{row.depth:g}"


def _spreads(
    spreads: Mapping[str, Spread], names: Sequence[str], seeds: Sequence[int]
) -> list[Cell | str]:
    return [
        Cell(f"{spread.mean:.3f}", seed_words(spread.by_seed.get(seed) for seed in seeds))
        if (spread := spreads.get(name)) is not None
        else "–"
        for name in names
    ]


def _beaten(beaters: Sequence[Beater]) -> Cell | str:
    if not beaters:
        return "–"
    first, more = beaters[0], f"; {len(beaters) - 1} more" if len(beaters) > 1 else ""
    ahead = f"{first.ahead} of {count(first.seeds, 'seed')}{more}"
    return Cell(f"{first.loss}, {first.depth:g} ep.", ahead)


def _pick(pick: Pick, outcome: str, scope: str | None) -> Cell:
    if outcome not in pick.outcomes:
        return Cell("none", "all flagged" if "flagged" in pick.reason else pick.reason)
    loss = f"{pick.loss}, " if scope is None else ""
    where = pick.reason if pick.depth is None else f"{loss}{pick.depth:g} ep."
    return Cell(f"{pick.outcomes[outcome]:.3f}", where)


def _key(table: str, comparison: EchelonComparison, scope: str | None) -> str:
    return table if scope == comparison.shown_scopes[0] else f"{table}-reference"


def _where(scope: str | None) -> str:
    return "over all losses" if scope is None else f"within {scope}"


def _means(comparison: EchelonComparison) -> str:
    seeds = len(comparison.plan.seeds)
    if seeds == 1:
        return "One seed."
    if seeds > 5:
        return "Mean and range of the seeds."
    return "Mean, and each seed in order; a dash where one is missing."


def _difference(
    difference: Difference | None, by_seed: Mapping[int, Mapping[str, float]]
) -> Cell | str:
    if difference is None:
        return "–"
    whole, interval = difference.difference, difference.interval
    same = sum(whole * seed.get(difference.metric, 0.0) > 0.0 for seed in by_seed.values())
    seeds = f"{same}/{len(by_seed)}" if len(by_seed) > 1 else ""
    ends = "" if interval is None else " to ".join(short_number(f"{x:+.3f}") for x in interval)
    return Cell(f"{whole:+.3f}", "; ".join(filter(None, (ends, seeds))))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
