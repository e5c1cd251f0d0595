"""An echelon as one HTML file with its figures, and all else that a run leaves to be read."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import (
    BASE,
    EchelonComparison,
    LadderRow,
    Spread,
    frontier_metrics,
)
from entropyfloor.echelon.paired import to_reference
from entropyfloor.echelon.rungs import (
    count,
    epochs,
    outcome_words,
    rung_name,
    seed_words,
    title,
    value,
)
from entropyfloor.echelon.table import echelon_markdown, tables
from entropyfloor.io import save_json, write_atomic, write_pictures
from entropyfloor.render.figure import Chart, entropy_axis, key, name_rows, series
from entropyfloor.render.page import render_page
from entropyfloor.render.palette import LIGHT

_SIZE = (370, 280)
_BASE: dict[str, Any] = {"color": LIGHT["soft"], "linewidth": 1.5}
_TAU_H: dict[str, Any] = {"color": LIGHT["bad"], "linewidth": 1.5, "linestyle": (0, (5, 4))}
_MARKS = {"linestyle": "none", "clip_on": False}
_WHEN = ("before", "after")
Legend = list[tuple[dict[str, Any], str]]


def write_report(comparison: EchelonComparison, folder: str | Path) -> None:
    """Write echelon.json, .md, .html and .png; a missing folder is made."""
    target = Path(folder)
    save_json(target / "echelon.json", {**comparison.to_dict(), "answer": answer(comparison)})
    write_atomic(target / "echelon.md", echelon_markdown(comparison))
    write_pictures(
        {
            target / "echelon.html": lambda path: write_atomic(path, echelon_html(comparison)),
            target / "echelon.png": lambda path: ladder_picture(comparison).save(path),
        }
    )


def echelon_html(comparison: EchelonComparison) -> str:
    """Return the page as text."""
    plan = comparison.plan
    settings = {**asdict(plan), "seconds of all cells": f"{comparison.seconds:.0f}"}
    losses = f"{len(plan.losses)} loss{'' if len(plan.losses) == 1 else 'es'}"
    depths = f"{count(len(plan.depths), 'depth')} (up to {epochs(plan.depths[-1])})"
    return render_page(
        "echelon/page.html.j2",
        settings=settings,
        name=plan.name,
        losses=losses,
        caption=f"{losses} × {depths} × {count(len(plan.seeds), 'seed')}",
        plan=plan,
        through=any(rung.outcomes for rung in comparison.rungs),
        missing=bool(comparison.missing),
        outcome=outcome_words(plan.outcome),
        answer=answer(comparison),
        key=key,
        legend=legend(comparison),
        ladders=ladder_charts(comparison),
        difference_legend=[(series(i), f"{when} RL") for i, when in enumerate(_WHEN)],
        differences=difference_charts(comparison),
        loss_legend=loss_legend(comparison),
        by_loss=loss_charts(comparison),
        frontier=frontier_charts(comparison),
        scatter=predictor_charts(comparison),
        regrets=regret_charts(comparison),
        tables=tables(comparison),
    )


@dataclass(frozen=True)
class Panel:
    """A measure before RL or, with ``after``, an outcome or a measure at the last step of RL."""

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
    made = []
    for measure in comparison.plan.metrics:
        if measure not in ("unique_fraction", "held_out_loss"):  # these are in the tables
            name = "entropy (nats)" if measure == "entropy_nats" else title(measure)
            made.append(Panel(measure, None, f"{name} before RL"))
            if measure.startswith("pass_at_"):
                made.append(Panel(measure, f"peak_{measure}", f"peak {name} after RL"))
            else:
                made.append(Panel(measure, measure, f"{name} after the last step of RL"))
    return [panel for panel in made if any(map(panel.spread, comparison.ladder))]


def legend(comparison: EchelonComparison) -> Legend:
    """What the marks of the losses mean, and the two lines."""
    entries: Legend = [(series(i), loss) for i, loss in enumerate(comparison.plan.losses)]
    if comparison.base:
        entries.append((_BASE, "base model"))
    return [*entries, (_TAU_H, f"tau_H = {comparison.plan.tau_h:g} nats")]


def ladder_charts(comparison: EchelonComparison) -> list[Chart]:
    """A chart per panel."""
    charts = []
    for panel in panels(comparison):
        rows = [(r.loss, r.depth, s) for r in comparison.ladder if (s := panel.spread(r))]
        said = "; ".join(f"{rung_name(loss, depth)}: {_words(s)}" for loss, depth, s in rows)
        chart = Chart(*_SIZE, _capital(panel.heading), said)
        _draw_panel(chart, chart.axes(below=_caption(comparison)), panel, comparison)
        charts.append(chart)
    return charts


def ladder_picture(comparison: EchelonComparison) -> Chart:
    """Every panel in one picture, those before RL above those after it."""
    shown = panels(comparison)
    rows = [[p for p in shown if (p.after is None) == before] for before in (True, False)]
    titles = [[panel.heading for panel in row] for row in rows if row]
    entries = [(Line2D([], [], **style), words) for style, words in legend(comparison)]
    height = 250 * len(titles) + 30 * math.ceil(len(entries) / 5)
    chart = Chart(330 * len(titles[0]), height, "Measures against depth of SFT")
    grid = chart.grid(titles, below=_caption(comparison))
    for row, columns in zip(rows, grid, strict=False):
        for panel, axes in zip(row, columns, strict=True):
            _draw_panel(chart, axes, panel, comparison)
    chart.legend(entries, columns=min(5, len(entries)))
    return chart


def difference_charts(comparison: EchelonComparison) -> list[Chart]:
    """Each loss less the reference at the same depth, with its interval; a chart per metric."""
    reference = comparison.plan.reference
    contrasts = [to_reference(reference, when) for when in _WHEN]
    pairs = [pair for pair in comparison.pairs if pair.contrast in contrasts]
    rungs = list(dict.fromkeys((pair.loss, pair.depth) for pair in pairs))
    charts = []
    for metric in dict.fromkeys(d.metric for pair in pairs for d in pair.differences):
        name = _capital(title(metric))
        chart = Chart(_SIZE[0], 34 * len(rungs) + 60, f"{name}, less {reference}'s")
        axes = chart.axes(below=f"difference to {reference}", grid="x")
        axes.axvline(0.0, color=LIGHT["soft"], linewidth=1.5)
        for pair in pairs:
            after = contrasts.index(pair.contrast)
            place = rungs.index((pair.loss, pair.depth)) + (0.18 if after else -0.18)
            for one in pair.differences:
                if one.metric == metric and one.interval is not None:
                    low, high = one.interval
                    axes.hlines(place, low, high, color=series(after)["color"], linewidth=1.5)
                    (mark,) = axes.plot([one.difference], [place], **series(after) | _MARKS)
                    rung = f"{rung_name(pair.loss, pair.depth)}, {_WHEN[after]} RL"
                    words = f"{one.difference:+.3f} ({low:+.3f} to {high:+.3f})"
                    chart.tip(mark, f"{rung}: {words}")
        name_rows(axes, [f"{loss}, {depth:g} ep." for loss, depth in rungs], letters=26)
        charts.append(chart)
    return charts


def loss_charts(comparison: EchelonComparison) -> list[Chart]:
    """One loss each: pass@1 and pass@k before RL, pass@k after it, a mark per seed."""
    charts = []
    for loss in comparison.plan.losses:
        chart = Chart(*_SIZE, loss)
        axes = chart.axes(below=_caption(comparison))
        for panel, style in _loss_curves(comparison):
            rungs = _ladder(comparison, panel, loss)
            _curve(axes, [(depth, spread.mean) for depth, spread in rungs], style)
            for depth, spread in rungs:
                words = f"{panel.heading}, {rung_name(loss, depth)}: {_words(spread)}"
                seeds = list(spread.by_seed.values())
                (marks,) = axes.plot([depth] * len(seeds), seeds, **style | _MARKS)
                chart.tip(marks, words)
        _depth_axis(axes, comparison.plan.depths)
        axes.set_ylim(0.0, 1.0)
        charts.append(chart)
    return charts


def loss_legend(comparison: EchelonComparison) -> Legend:
    """What the marks of :func:`loss_charts` mean."""
    return [(style, panel.heading) for panel, style in _loss_curves(comparison)]


def frontier_charts(comparison: EchelonComparison) -> list[Chart]:
    """Each measure against entropy before RL, joined along depth; none without a frontier."""
    on = {(rung.loss, rung.depth) for rung in comparison.frontier if not rung.beaten_by}
    rows = [row for row in comparison.ladder if row.loss != BASE]
    metrics = frontier_metrics(rows, comparison.plan) if comparison.frontier else {}
    charts = []
    for measure in [name for name in metrics if name != "entropy_nats"]:
        points = []
        for row in rows:
            x, y = row.before["entropy_nats"].mean, row.before[measure].mean
            where = ", on the frontier" if (row.loss, row.depth) in on else ""
            rung = rung_name(row.loss, row.depth)
            words = f"{rung}: entropy {x:.3f}, {title(measure)} {y:.3f}{where}"
            points.append((row.loss, x, y, words))
        heading = f"{_capital(title(measure))}, by entropy"
        charts.append(_scatter(comparison, heading, "entropy_nats", points, joined=True))
    return charts


def predictor_charts(comparison: EchelonComparison) -> list[Chart]:
    """Each rung's outcome against a measure before RL; none where nothing went through RL."""
    outcome, charts = comparison.plan.outcome, []
    for predictor in ("pass_at_1", "entropy_nats", "degenerate_fraction"):
        points = []
        for rung in comparison.rungs:
            x = value(rung.before, predictor)
            if rung.outcomes and x is not None:
                y = rung.outcomes[outcome].value
                words = f"{title(predictor)} {x:.3f}, {outcome_words(outcome)} {y:.3f}"
                points.append((rung.loss, x, y, f"{rung.name}, seed {rung.seed}: {words}"))
        heading = f"{_capital(outcome_words(outcome))}, by {title(predictor)} before RL"
        if points:
            charts.append(_scatter(comparison, heading, predictor, points, joined=False))
    return charts


def regret_charts(comparison: EchelonComparison) -> list[Chart]:
    """Mean regret of every rule, a ring per seed, among all losses and within the reference."""
    outcome, charts = comparison.plan.outcome, []
    for scope in comparison.shown_scopes:
        rules = [(r.regret(outcome), r) for r in comparison.rules_of(scope)]
        known = sorted(
            ((regret, r) for regret, r in rules if regret is not None), key=lambda pair: pair[0]
        )
        if not known:
            continue
        heading = "Among all losses" if scope is None else f"Among checkpoints of {scope}"
        said = "; ".join(f"{rule.rule} {regret:.3f}" for regret, rule in known)
        chart = Chart(_SIZE[0], 32 * len(known) + 60, heading, said)
        axes = chart.axes(below="regret (less is better)", grid="x")
        for place, (regret, rule) in enumerate(known):
            seeds = [r for p in rule.by_seed.values() if (r := p.regret(outcome)) is not None]
            (bar,) = axes.barh(place, regret, height=0.45, color=LIGHT["fill"])
            chose = f"{rule.rule}: {regret:.3f} in {len(seeds)} of {len(rule.by_seed)} seeds"
            chart.tip(bar, f"{chose} {seed_words(seeds)}")
            axes.plot(seeds, [place] * len(seeds), **series(5) | _MARKS)
        name_rows(axes, [rule.rule for _, rule in known], letters=26)
        axes.set_xlim(left=0.0)
        charts.append(chart)
    return charts


def _draw_panel(chart: Chart, axes: Axes, panel: Panel, comparison: EchelonComparison) -> None:
    """Curves through the means of each loss, whiskers from the lowest seed to the highest."""
    plan = comparison.plan
    base = comparison.row(BASE, 0.0)
    if base is not None and (spread := panel.spread(base)) is not None:
        chart.tip(axes.axhline(spread.mean, **_BASE), f"base: {_words(spread)}")
    if panel.measure == "entropy_nats":
        chart.tip(axes.axhline(plan.tau_h, **_TAU_H), f"tau_H = {plan.tau_h:g} nats")
    log = _depth_axis(axes, plan.depths)
    width = (plan.depths[-1] - plan.depths[0]) or 1.0
    for place, loss in enumerate(plan.losses):
        # A little sideways, so that whiskers of several losses can all be seen.
        aside = 0.012 * (place - (len(plan.losses) - 1) / 2)
        rungs = _ladder(comparison, panel, loss)
        xs = [d * (1 + 2 * aside) if log else d + aside * width for d, _ in rungs]
        _curve(axes, [(x, s.mean) for x, (_, s) in zip(xs, rungs, strict=True)], series(place))
        for x, (depth, spread) in zip(xs, rungs, strict=True):
            axes.vlines(x, spread.low, spread.high, color=series(place)["color"], linewidth=1.2)
            (mark,) = axes.plot([x], [spread.mean], **series(place) | _MARKS)
            chart.tip(mark, f"{rung_name(loss, depth)}: {_words(spread)}")
    pair = [p for p in panels(comparison) if p.measure == panel.measure]  # they share their scale
    spreads = [s for p in pair for row in comparison.ladder if (s := p.spread(row)) is not None]
    _scale(axes, "y", panel.measure, [e for s in spreads for e in (s.low, s.high)], plan.tau_h)


def _scatter(
    comparison: EchelonComparison,
    heading: str,
    measure: str,
    points: Sequence[tuple[str, float, float, str]],
    *,
    joined: bool,
) -> Chart:
    """Points (loss, x, y, words) against a measure before RL."""
    plan = comparison.plan
    chart = Chart(*_SIZE, heading, "; ".join(words for *_, words in points))
    unit = " (nats)" if measure == "entropy_nats" else ""
    axes = chart.axes(below=f"{title(measure)} before RL{unit}")
    if unit:
        chart.tip(axes.axvline(plan.tau_h, **_TAU_H), f"tau_H = {plan.tau_h:g} nats")
    for place, loss in enumerate(plan.losses if joined else ()):
        _curve(axes, [(x, y) for name, x, y, _ in points if name == loss], series(place))
    for loss, x, y, words in points:
        (mark,) = axes.plot([x], [y], **series(plan.losses.index(loss)) | _MARKS)
        chart.tip(mark, words)
    _scale(axes, "x", measure, [x for _, x, _, _ in points], plan.tau_h)
    _scale(axes, "y", "", [y for _, _, y, _ in points], plan.tau_h)
    return chart


def _loss_curves(comparison: EchelonComparison) -> list[tuple[Panel, dict[str, Any]]]:
    plan = comparison.plan
    before = dict.fromkeys(("pass_at_1", f"pass_at_{plan.outcome_k}"))
    curves = [
        (Panel(measure, None, f"{title(measure)} before RL"), series(place) | {"linestyle": "--"})
        for place, measure in enumerate(before, 1)
    ]
    if any(row.outcomes for row in comparison.ladder):
        curves.append((Panel("", plan.outcome, outcome_words(plan.outcome)), series(0)))
    return curves


def _ladder(comparison: EchelonComparison, panel: Panel, loss: str) -> list[tuple[float, Spread]]:
    """``(depth, spread)`` of one loss, shallowest first."""
    rows = [row for row in comparison.ladder if row.loss == loss]
    return [(row.depth, spread) for row in rows if (spread := panel.spread(row)) is not None]


def _curve(axes: Axes, points: Sequence[tuple[float, float]], style: dict[str, Any]) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=style["color"], linestyle=style.get("linestyle", "-"), linewidth=1.8)


def _scale(axes: Axes, side: Any, measure: str, values: Sequence[float], tau_h: float) -> None:
    """Entropy from 0 or logarithmic, tau_H inside; a share in tenths around the values."""
    if measure == "entropy_nats":
        entropy_axis(axes, side, [*values, tau_h])
        return
    low = max(0.0, math.floor(10 * min(values) - 0.2) / 10)
    high = min(1.0, math.ceil(10 * max(values) + 0.2) / 10)
    axes.set(**{f"{side}lim": (low, max(high, low + 0.1))})


def _depth_axis(axes: Axes, depths: Sequence[float]) -> bool:
    """Ticks at the depths; logarithmic, which is returned, if shallow ones would lie together."""
    log = _logarithmic(depths)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    place = math.log if log else float
    apart = 0.09 * (place(depths[-1]) - place(depths[0]))
    kept: list[float] = []
    for depth in depths:  # those whose labels do not run into the one before
        if not kept or place(depth) - place(kept[-1]) > apart:
            kept.append(depth)
    axes.set_xticks(kept, [f"{depth:g}" for depth in kept])
    return log


def _logarithmic(depths: Sequence[float]) -> bool:
    return min(depths) > 0 and max(depths) / min(depths) > 8


def _caption(comparison: EchelonComparison) -> str:
    return "epochs of SFT" + (" (logarithmic)" if _logarithmic(comparison.plan.depths) else "")


def _words(spread: Spread) -> str:
    seeds = seed_words(spread.by_seed.values())
    return f"{spread.mean:.3f}" + (f" ({seeds})" if seeds else "")


def _capital(words: str) -> str:
    """A capital at the start; a measure keeps its spelling."""
    return words if words.startswith("pass@") else words[:1].upper() + words[1:]
