"""An echelon as one HTML file that needs nothing else: no script, no request."""

from pathlib import Path

from entropyfloor.echelon import figures
from entropyfloor.echelon.answer import answer, missing_words
from entropyfloor.echelon.axes import panels
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.findings import details
from entropyfloor.echelon.frontier_report import frontier_figures
from entropyfloor.echelon.markdown import echelon_markdown
from entropyfloor.echelon.measure_names import outcome_words, title
from entropyfloor.echelon.plot import write_echelon_plot
from entropyfloor.echelon.rungs import epochs
from entropyfloor.echelon.table import tables
from entropyfloor.io import save_json, write_atomic
from entropyfloor.render.page import flat_settings, page_environment, style_sheet

_PREDICTORS = ("pass_at_1", "entropy_nats", "degenerate_fraction")


def write_report(comparison: EchelonComparison, folder: str | Path) -> None:
    """Write echelon.json, .md, .html and .png; a missing folder is made."""
    target = Path(folder)
    document = {**comparison.to_dict(), "answer": answer(comparison)}
    save_json(target / "echelon.json", document)
    write_atomic(target / "echelon.md", echelon_markdown(comparison))
    write_atomic(target / "echelon.html", echelon_html(comparison))
    write_echelon_plot(comparison, target / "echelon.png")


def echelon_html(comparison: EchelonComparison) -> str:
    """Return the page as text."""
    plan = comparison.plan
    through = any(rung.outcomes for rung in comparison.rungs)
    scatter = [figures.predictor_figure(comparison, name) for name in _PREDICTORS]
    scopes = list(dict.fromkeys([comparison.plan.scopes[0], plan.reference]))
    regrets = [(scope, figures.regret_figure(comparison, scope)) for scope in scopes]
    return (
        page_environment()
        .get_template("render/templates/echelon.html.j2")
        .render(
            style=style_sheet("screening.css") + style_sheet("echelon.css"),
            name=comparison.settings.get("name", ""),
            caption=_caption(comparison),
            plan=plan,
            through=through,
            outcome=outcome_words(plan.outcome),
            capital=_capital,
            answer=answer(comparison),
            findings=details(comparison),
            missing=missing_words(comparison),
            keys=[(figures.key_mark(i), loss) for i, loss in enumerate(plan.losses)],
            base_mark=figures.base_mark() if comparison.base else None,
            ladders=[
                (_capital(p.heading), figures.ladder_figure(comparison, p))
                for p in panels(comparison)
            ],
            loss_keys=_loss_keys(comparison),
            by_loss=[
                (loss, figures.loss_figure(comparison, loss))
                for loss in plan.losses
                if any(row.loss == loss for row in comparison.ladder)
            ],
            frontier=[
                (_capital(title(name)), chart) for name, chart in frontier_figures(comparison)
            ],
            scatter=[
                (title(name), chart)
                for name, chart in zip(_PREDICTORS, scatter, strict=True)
                if chart is not None
            ],
            regrets=[(scope, chart) for scope, chart in regrets if chart is not None],
            tables=tables(comparison),
            flat_settings=list(flat_settings(_shown_settings(comparison))),
        )
    )


def _capital(words: str) -> str:
    """A capital at the start; a measure keeps its spelling."""
    return words if words.startswith("pass@") else words[:1].upper() + words[1:]


def _caption(comparison: EchelonComparison) -> str:
    plan = comparison.plan

    def some(count: int, one: str, many: str) -> str:
        return f"{count} {one if count == 1 else many}"

    words = (
        f"{some(len(plan.losses), 'loss', 'losses')} × {some(len(plan.depths), 'depth', 'depths')} "
        f"(up to {epochs(plan.depths[-1])}) × {some(len(plan.seeds), 'seed', 'seeds')}"
    )
    if plan.grpo_steps:
        words += f", each through the same {plan.grpo_steps[-1]} steps of GRPO"
    return words


def _loss_keys(comparison: EchelonComparison) -> list[tuple[object, str]]:
    plan, keys = comparison.plan, [(figures.curve_mark("s1 dashed", 2), "pass@1 before RL")]
    if plan.outcome_k > 1:
        words = f"pass@{plan.outcome_k} before RL"
        keys.append((figures.curve_mark("s0 dashed", 1), words))
    if any(rung.outcomes for rung in comparison.rungs):
        keys.append((figures.curve_mark("s0", 0), outcome_words(plan.outcome)))
    return list(keys)


def _shown_settings(comparison: EchelonComparison) -> dict[str, object]:
    """As handed in, completed by what was taken in their place."""
    plan = comparison.plan
    own = {"tau_h": plan.tau_h, "floor": plan.floor, "reference": plan.reference}
    shown: dict[str, object] = {**own, **comparison.settings}
    if comparison.seconds is not None:
        shown["seconds of all cells"] = f"{comparison.seconds:.0f}"
    return shown
