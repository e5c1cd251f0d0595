"""The tables of an echelon, once, as text: for Markdown, the terminal and the page."""

from collections.abc import Mapping, Sequence

from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.frontier_report import frontier_words
from entropyfloor.echelon.ladder import (
    Beater,
    Spread,
)
from entropyfloor.echelon.measure_names import (
    count,
    outcome_words,
    p_text,
    seed_words,
    short_outcome,
    title,
)
from entropyfloor.echelon.predictors import PredictorRank, predictors
from entropyfloor.echelon.rungs import rung_name
from entropyfloor.echelon.selection import RANDOM, RECOMMENDED, Pick
from entropyfloor.render.text_table import Cell, Table


def tables(comparison: EchelonComparison) -> list[Table]:
    """What there is to show, in reading order."""
    found = [before_table(comparison)]
    if any(row.outcomes for row in comparison.ladder):
        found.append(after_table(comparison))
    scopes = list(dict.fromkeys([comparison.plan.scopes[0], comparison.plan.reference]))
    found += [rules_table(comparison, scope) for scope in scopes if comparison.rules_of(scope)]
    found += [
        ranks_table(comparison, scope)
        for scope in scopes
        if any(r.pooled is not None for r in comparison.ranks_of(comparison.plan.outcome, scope))
    ]
    if len(comparison.plan.scopes) > 2:
        found.append(within_table(comparison))
    if comparison.missing:
        found.append(missing_table(comparison))
    return [table for table in found if table.rows]


def before_table(comparison: EchelonComparison) -> Table:
    """Measures before RL by loss and depth."""
    seeds = comparison.plan.seeds
    names = [
        name
        for name in comparison.plan.measures
        if any(name in row.before for row in comparison.ladder)
    ]
    found = {(rung.loss, rung.depth): rung.beaten_by for rung in comparison.frontier}
    note = (
        f"{_means(comparison)} Degenerate: groups of {comparison.plan.group_size} rollouts whose "
        "rewards all agree."
    )
    if found:
        note += (
            f" Beaten by: a rung with {frontier_words(comparison)}, in the mean of the seeds; in "
            "brackets in how many of them by itself. A dash: none, it is on the frontier."
        )
    return Table(
        "before",
        "Before RL",
        ("loss", "epochs", *map(title, names), *(["beaten by"] if found else [])),
        tuple(
            (
                Cell(row.loss),
                Cell(f"{row.depth:g}"),
                *_spreads(row.before, names, seeds),
                *([_beaten(found.get((row.loss, row.depth)))] if found else []),
            )
            for row in comparison.ladder
        ),
        note,
    )


def after_table(comparison: EchelonComparison) -> Table:
    """Outcomes, and measures at the last step, by loss and depth."""
    plan = comparison.plan
    names = [n for n in plan.measures if not n.startswith("pass_at_")]
    shown = [n for n in names if any(n in row.after for row in comparison.ladder)]
    steps = ", ".join(map(str, plan.grpo_steps))
    return Table(
        "after",
        "After RL",
        (
            "loss",
            "epochs",
            *map(short_outcome, plan.outcomes),
            *(f"last {title(name)}" for name in shown),
        ),
        tuple(
            (
                Cell(row.loss),
                Cell(f"{row.depth:g}"),
                *_spreads(row.outcomes, plan.outcomes, plan.seeds),
                *_spreads(row.after, shown, plan.seeds),
            )
            for row in comparison.ladder
            if row.outcomes
        ),
        f"{_means(comparison)} Peak: best of GRPO steps {steps}, an optimistic number; last: step "
        f"{plan.grpo_steps[-1]}.",
    )


def rules_table(comparison: EchelonComparison, scope: str | None) -> Table:
    """What each rule picked in each seed, what it got, and the regret."""
    plan, rules = comparison.plan, comparison.rules_of(scope)
    seeds = list(rules[0].by_seed)
    best = Cell("the best there was"), *(_best(rules[0].by_seed[s], plan.outcome) for s in seeds)
    rows = [
        (
            Cell(rule.rule),
            *(_picked(rule.by_seed[s], plan.outcome, scope) for s in seeds),
            Cell(_number(rule.mean(plan.outcome)), _some(rule.chosen(), len(seeds))),
            Cell(_number(rule.regret(plan.outcome)), _regrets(rule.by_seed, plan.outcome)),
        )
        for rule in sorted(rules, key=lambda rule: rule.rule == RANDOM)
    ]
    mean = sum(rules[0].by_seed[s].best[plan.outcome] for s in seeds) / len(seeds)
    rows.append((*best, Cell(_number(mean)), Cell("0.000")))
    where = "over all losses" if scope is None else f"within {scope}"
    return Table(
        "rules" if scope is None else f"rules-{plan.losses.index(scope)}",
        f"Which checkpoint to start RL from, {where}",
        ("rule", *(f"seed {seed}" for seed in seeds), "mean", "regret"),
        tuple(rows),
        f"In every seed {outcome_words(plan.outcome)} of the rung that the rule picked. Regret: "
        "the best less that.",
    )


def ranks_table(comparison: EchelonComparison, scope: str | None) -> Table:
    """Spearman of every predictor with the outcomes."""
    plan = comparison.plan
    rows = []
    for rank in comparison.ranks_of(plan.outcome, scope):
        ends = rank.interval
        others = [
            next(r for r in comparison.ranks_of(o, scope) if r.predictor == rank.predictor).mean
            for o in plan.outcomes[1:]
        ]
        rows.append(
            (
                Cell(title(rank.predictor)),
                Cell(_signed(rank.mean), _by_seed(rank, plan.seeds)),
                Cell("–" if ends is None else f"{ends.low:+.2f} to {ends.high:+.2f}"),
                Cell("–" if rank.p_value is None else p_text(rank.p_value).removeprefix("= ")),
                Cell(_signed(rank.pooled)),
                Cell(f"{rank.points}"),
                *(Cell(_signed(mean)) for mean in others),
            )
        )
    where = "over all losses" if scope is None else f"within {scope}"
    return Table(
        "ranks" if scope is None else f"ranks-{plan.losses.index(scope)}",
        f"Which measure before RL foretells {outcome_words(plan.outcome)}, {where}",
        (
            "predictor",
            "Spearman",
            "95 % interval",
            "p",
            "pooled",
            "points",
            *map(short_outcome, plan.outcomes[1:]),
        ),
        tuple(rows),
        "Spearman: mean over seeds, each seed beside it; its interval is over seeds (t); p "
        "permutes outcomes within seeds and is not corrected for the number of predictors; pooled "
        "takes the points of all seeds together. p̂/p* is pass@1 divided by a constant and has its "
        "ranks. Last columns: the mean Spearman with other outcomes. Less is better for degenerate "
        "fraction and held-out loss, so −1 is their best.",
    )


def within_table(comparison: EchelonComparison) -> Table:
    """Every loss by itself: pairs turned around, regret of pass@1, rank correlations."""
    plan, rows = comparison.plan, []
    names = [name for name in predictors(plan) if name != "p_hat_over_p_star"]
    for loss in plan.losses:
        order = comparison.inversion(plan.outcome, loss)
        if order is None:
            continue
        orders = order.by_seed.values()
        rules = {rule.rule: rule for rule in comparison.rules_of(loss)}
        ranks = {rank.predictor: rank for rank in comparison.ranks_of(plan.outcome, loss)}
        pairs = sum(o.kept + o.turned for o in orders)
        rows.append(
            (
                Cell(loss),
                Cell(f"{sum(o.turned for o in orders)} of {pairs}"),
                Cell(f"{len(order.inverted)} of {len(orders)}"),
                *(
                    Cell(_number(rules[rule].regret(plan.outcome) if rule in rules else None))
                    for rule in ("highest pass@1", RECOMMENDED)
                ),
                *(Cell(_signed(ranks[name].mean if name in ranks else None)) for name in names),
            )
        )
    return Table(
        "within",
        "Loss by loss",
        (
            "loss",
            "pairs turned",
            "seeds inverted",
            "regret of highest pass@1",
            f"regret of {RECOMMENDED}",
            *(f"Spearman of {title(name)}" for name in names),
        ),
        tuple(rows),
        "Each loss by itself, over its depths. Pairs turned: of two rungs of a seed, the one with "
        f"the higher pass@1 has the lower {outcome_words(plan.outcome)}. Regret and Spearman are "
        "means over seeds.",
    )


def missing_table(comparison: EchelonComparison) -> Table:
    """Cells without an outcome."""
    return Table(
        "missing",
        "Missing",
        ("cell", "seed", "what is missing"),
        tuple(
            (Cell(rung_name(cell.loss, cell.depth)), Cell(f"{cell.seed}"), Cell(cell.why))
            for cell in comparison.missing
        ),
        "Left out of whatever compares outcomes.",
        names=3,
    )


def _means(comparison: EchelonComparison) -> str:
    return (
        "Mean, and each seed in order; a dash where one is missing."
        if 1 < len(comparison.plan.seeds) <= 5
        else "Mean and range of the seeds."
        if len(comparison.plan.seeds) > 5
        else "One seed."
    )


def _spreads(found: Mapping[str, Spread], names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    return [
        Cell("–")
        if (spread := found.get(name)) is None
        else Cell(f"{spread.mean:.3f}", seed_words(spread.by_seed.get(seed) for seed in seeds))
        for name in names
    ]


def _beaten(beaters: Sequence[Beater] | None) -> Cell:
    if not beaters:
        return Cell("" if beaters is None else "–")  # the base does not take part
    first = beaters[0]
    more = f"; {len(beaters) - 1} more" if len(beaters) > 1 else ""
    where = f"{first.ahead} of {count(first.seeds, 'seed')}{more}"
    return Cell(f"{first.loss}, {first.depth:g} ep.", where)


def _by_seed(rank: PredictorRank, seeds: Sequence[int]) -> str:
    return seed_words((rank.by_seed.get(seed) for seed in seeds), digits=2, sign=True)


def _picked(pick: Pick, outcome: str, scope: str | None) -> Cell:
    got = pick.outcomes.get(outcome)
    if got is None:
        return Cell("none", "all flagged" if "flagged" in pick.reason else pick.reason)
    if pick.loss is None or pick.depth is None:
        return Cell(f"{got:.3f}", pick.reason)
    short = f"{pick.depth:g} ep." if scope is not None else f"{pick.loss}, {pick.depth:g} ep."
    return Cell(f"{got:.3f}", short)


def _best(pick: Pick, outcome: str) -> Cell:
    return Cell(f"{pick.best[outcome]:.3f}")


def _regrets(picks: Mapping[int, Pick], outcome: str) -> str:
    return seed_words(pick.regret(outcome) for pick in picks.values())


def _some(chosen: int, seeds: int) -> str:
    return "" if chosen == seeds else f"{chosen} of {seeds} seeds"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
