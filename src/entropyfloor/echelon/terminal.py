"""An echelon for a terminal: the answer, the ladder, the rules; the rest is in the other files."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from entropyfloor.echelon.answer import answer, missing_words
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.ladder import Spread
from entropyfloor.echelon.measure_names import seed_words, short_outcome, title


def echelon_terminal(comparison: EchelonComparison) -> Iterator[RenderableType]:
    """Yield what a rich console prints, one after another."""
    yield _ladder(comparison)
    if comparison.rules:
        yield _rules(comparison)
    yield from (Text(words) for words in answer(comparison))
    if words := missing_words(comparison):
        yield Text(words, style="yellow")


def _ladder(comparison: EchelonComparison) -> Table:
    plan = comparison.plan
    before = list(dict.fromkeys(("entropy_nats", "pass_at_1", f"pass_at_{plan.outcome_k}")))
    before.append("degenerate_fraction")
    through = any(row.outcomes for row in comparison.ladder)
    table = Table(
        title="Echelon, means of the seeds",
        caption="before RL" + (f"; {short_outcome(plan.outcome)} is after it" if through else ""),
        pad_edge=False,
    )
    table.add_column("loss", overflow="fold")
    headers = ["epochs", *(title(name).removesuffix(" fraction") for name in before)]
    if through:
        headers += [short_outcome(plan.outcome), "by seed"]
    for header in headers:
        table.add_column(header, justify="right")
    for row in comparison.ladder:
        cells = [f"{row.depth:g}", *(_mean(row.before.get(name)) for name in before)]
        if through:
            found = row.outcomes.get(plan.outcome)
            seeds = "" if found is None else seed_words(found.by_seed.get(s) for s in plan.seeds)
            cells += [_mean(found), seeds]
        last = row is comparison.ladder[-1] or row.depth == plan.depths[-1] or row.depth == 0
        table.add_row(Text(row.loss), *cells, end_section=last)
    return table


def _rules(comparison: EchelonComparison) -> Table:
    plan = comparison.plan
    scopes = list(dict.fromkeys([comparison.plan.scopes[0], plan.reference]))
    table = Table(
        title=f"Regret: {short_outcome(plan.outcome)} of the best rung, less that of the pick",
        caption="means of the seeds; in brackets: seeds in which the rule chose",
        pad_edge=False,
    )
    table.add_column("rule")
    for scope in scopes:
        table.add_column(Text("all losses" if scope is None else scope), justify="right")
    by_rule: dict[str, dict[str | None, str]] = {}
    for scope in scopes:
        for rule in comparison.rules_of(scope):
            regret = rule.regret(plan.outcome)
            words = "none" if regret is None else f"{regret:.3f}"
            if regret is not None and rule.chosen() < len(rule.by_seed):
                words += f" ({rule.chosen()} of {len(rule.by_seed)})"
            by_rule.setdefault(rule.rule, {})[scope] = words
    for name, found in by_rule.items():
        table.add_row(name, *(found.get(scope, "–") for scope in scopes))
    return table


def _mean(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread.mean:.3f}"
