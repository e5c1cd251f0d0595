"""The figures of a screening: each is drawn once, for the page and for the picture.

Where a figure has a row per checkpoint, rows are in the order screened (by depth, for a trainer's
folder): names stay readable at any number of them. Whiskers are 95 % intervals over prompts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from entropyfloor.render.figure import Chart, entropy_axis, name_rows, series, threshold
from entropyfloor.render.palette import LIGHT
from entropyfloor.render.text import common_beginning
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.screening.table import verdict_style, verdict_word
from entropyfloor.stats.groups import p_star

_WIDTH = 370  # CSS pixels: a phone, or a third of a desk
_ROW = 24
_CURVES = 6  # that a reader keeps apart at a glance
_Drawing = Callable[[Chart, Axes, ScreeningReport], str]  # draws, and says what it drew


def write_plot(report: ScreeningReport, path: str | Path) -> Path:
    """Write the figures about the whole set side by side, as the suffix says; return the path."""
    rows = list(_row_drawings(report).values())
    curves = [_draw_curves] if _curves(report) else []
    count = len(rows) + len(curves)
    chart = Chart((490 if curves else 170) + 280 * count, max(260, _height(report)))
    for place, axes in enumerate(chart.panels(1, count, grid="")):
        (rows + curves)[place](chart, axes, report)
        if 0 < place < len(rows):
            axes.tick_params(labelleft=False)
    return chart.save(path)


def row_figures(report: ScreeningReport) -> dict[str, Chart]:
    """Figures with a row per checkpoint: ``entropy``, ``degenerate`` and ``headroom``, if any."""
    charts = {}
    for name, draw in _row_drawings(report).items():
        charts[name] = Chart(_WIDTH, _height(report), name)
        charts[name].description = draw(charts[name], charts[name].axes(grid=""), report)
    return charts


def pass_at_k_figure(report: ScreeningReport) -> Chart | None:
    """pass@k against k, a curve per checkpoint; None for fewer than two k."""
    if not _curves(report):
        return None
    keys = min(len(report.checkpoints), _CURVES + 1)
    chart = Chart(_WIDTH, 260 + 20 * keys, "pass@k")
    chart.description = _draw_curves(chart, chart.axes(), report)
    return chart


def highlighted(report: ScreeningReport, count: int = _CURVES) -> list[int]:
    """Rows to show in full: all if they are few, else what advice names, the ends, the extremes."""
    rows = report.checkpoints
    if len(rows) <= count:
        return list(range(len(rows)))
    advice = report.recommendation
    named = [] if advice is None else [advice.name, advice.highest_pass_at_1]
    wanted = [i for name in named for i, row in enumerate(rows) if row.name == name]
    entropies = [row.entropy_nats for row in rows]
    wanted += [0, len(rows) - 1, entropies.index(min(entropies)), entropies.index(max(entropies))]
    wanted += [round(i * (len(rows) - 1) / (count - 1)) for i in range(count)]
    return sorted(list(dict.fromkeys(wanted))[:count])


def pass_rate_figure(checkpoint: CheckpointScreening, report: ScreeningReport) -> Chart | None:
    """How many prompts have which pass rate; p*(g) marked."""
    rates = checkpoint.per_prompt_pass_rates
    if not rates:
        return None
    samples = report.settings.get("num_samples") or 10
    # One bin per possible count while they are few, centred on it; else twenty equal ones.
    bins = samples + 1 if samples <= 16 else 20
    counts = [0] * bins
    for rate in rates:
        place = round(rate * samples) if samples <= 16 else int(rate * 20)
        counts[min(place, bins - 1)] += 1
    half = 0.5 / samples if samples <= 16 else 0.0
    edges = [-half + i * (1 + 2 * half) / bins for i in range(bins + 1)]
    size = report.settings.get("group_size")
    said = (
        f"{checkpoint.name}: {counts[0]} of {len(rates)} prompts are in the lowest bin of pass "
        f"rates, {counts[-1]} in the highest"
    )
    chart, axes = _histogram(edges, counts, "pass rate of a prompt", "prompts", said)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    if size is not None:
        threshold(axes, p_star(size), f"p*({size}) = {p_star(size):.3f}")
    return chart


def token_entropy_figure(checkpoint: CheckpointScreening) -> Chart | None:
    """Share of generated tokens by their entropy; the mean marked."""
    histogram = checkpoint.token_entropy_histogram
    if histogram is None or not sum(histogram.counts):
        return None
    shares = [count / sum(histogram.counts) for count in histogram.counts]
    mean = checkpoint.entropy_nats
    said = (
        f"{checkpoint.name}: {shares[0]:.0%} of tokens have an entropy of at most "
        f"{histogram.edges[1]:.2g} nats; the mean is {mean:.3f}"
    )
    chart, axes = _histogram(histogram.edges, shares, "entropy of a token (nats)", "tokens", said)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    threshold(axes, mean, f"mean {mean:.3f}")
    return chart


def _histogram(
    edges: Sequence[float], heights: Sequence[float], below: str, unit: str, said: str
) -> tuple[Chart, Axes]:
    chart = Chart(330, 190, f"{unit} by {below}", said, margins=(48, 14, 24, 44))
    axes = chart.axes(below=below)
    widths = [high - low for low, high in pairwise(edges)]
    bars = axes.bar(
        edges[:-1], heights, widths, align="edge", color=LIGHT["fill"], edgecolor=LIGHT["panel"]
    )
    for bar, (low, high), value in zip(bars, pairwise(edges), heights, strict=True):
        shown = f"{value:d}" if isinstance(value, int) else f"{value:.1%}"
        chart.tip(bar, f"{max(low, 0):.3g} to {high:.3g}: {shown} {unit}")
    axes.set_xlim(edges[0], edges[-1])
    return chart, axes


def _row_drawings(report: ScreeningReport) -> dict[str, _Drawing]:
    drawings: dict[str, _Drawing] = {"entropy": _draw_entropy}
    if any(c.degenerate_fraction is not None for c in report.checkpoints):
        drawings["degenerate"] = _draw_degenerate
    if any(len(c.pass_at_k) > 1 for c in report.checkpoints):
        drawings["headroom"] = _draw_headroom
    return drawings


def _height(report: ScreeningReport) -> int:
    return 76 + _ROW * len(report.checkpoints)


def _draw_entropy(chart: Chart, axes: Axes, report: ScreeningReport) -> str:
    """Entropy and tau_H; a triangle is flagged, so that colour is not needed."""
    rows, tau_h = report.checkpoints, report.settings.get("tau_h")
    ends = [end for c in rows for end in c.intervals.get("entropy_nats", ())]
    values = [c.entropy_nats for c in rows] + ends + ([] if tau_h is None else [tau_h])
    kind = "logarithmic, " if entropy_axis(axes, "x", values) else ""
    _name_rows(axes, report, f"entropy of rollouts ({kind}nats)")
    said = []
    for y, c in enumerate(rows):
        _whisker(axes, c, "entropy_nats", y)
        style: Any = {"color": LIGHT[verdict_style(c)], "marker": "v" if c.flagged else "o"}
        (mark,) = axes.plot([c.entropy_nats], [y], markersize=9, **style)
        said.append(
            f"{c.name}: {c.entropy_nats:.3f} nats{_say_interval(c, 'entropy_nats')}, "
            f"{verdict_word(c)}"
        )
        chart.tip(mark, said[-1])
    if tau_h is not None:
        threshold(axes, tau_h, f"tau_H = {tau_h:g}")
    return "; ".join(said)


def _draw_degenerate(chart: Chart, axes: Axes, report: ScreeningReport) -> str:
    """Groups whose rewards agree: all wrong, then all right."""
    _name_rows(axes, report, f"groups of {report.settings.get('group_size')} that agree")
    axes.set_xlim(0.0, 1.03)
    said = []
    for y, c in enumerate(report.checkpoints):
        if c.degenerate_fraction is None:
            continue
        wrong, right = c.degenerate_all_wrong or 0.0, c.degenerate_all_right or 0.0
        said.append(
            f"{c.name}: {c.degenerate_fraction:.3f} of groups agree, {wrong:.3f} all wrong and "
            f"{right:.3f} all right{_say_interval(c, 'degenerate_fraction')}"
        )
        for left, part, colour in ((0.0, wrong, "wrong"), (wrong, right, "right")):
            (bar,) = axes.barh([y], [part], left=left, height=0.5, color=LIGHT[colour])
            chart.tip(bar, said[-1])
        _whisker(axes, c, "degenerate_fraction", y)
    marks = [(Patch(color=LIGHT[kind]), f"all {kind}") for kind in ("wrong", "right")]
    chart.legend(marks, axes=axes, columns=2)
    return "; ".join(said)


def _draw_headroom(chart: Chart, axes: Axes, report: ScreeningReport) -> str:
    """pass@1, pass@k at the largest k, and the way between them."""
    rows = [(y, c) for y, c in enumerate(report.checkpoints) if len(c.pass_at_k) > 1]
    largest = max(k for _, c in rows for k in c.pass_at_k)
    _name_rows(axes, report, "share of prompts")
    axes.set_xlim(-0.03, 1.03)
    low, high = series(5), series(0)
    said = []
    for y, c in rows:
        ends = c.pass_at_1 or 0.0, c.pass_at_k.get(largest, c.pass_at_1 or 0.0)
        said.append(f"{c.name}: pass@1 {ends[0]:.3f}, pass@{largest} {ends[1]:.3f}")
        (line,) = axes.plot(ends, [y, y], color=LIGHT["s0"], linewidth=2.5, alpha=0.5)
        chart.tip(line, said[-1])
        for end, style in zip(ends, (low, high), strict=True):
            (mark,) = axes.plot([end], [y], **style)
            chart.tip(mark, said[-1])
    marks = [
        (Line2D([], [], linestyle="none", **style), words)
        for style, words in ((low, "pass@1"), (high, f"pass@{largest}"))
    ]
    chart.legend(marks, axes=axes, columns=2)
    return "; ".join(said)


def _curves(report: ScreeningReport) -> bool:
    return len({k for c in report.checkpoints for k in c.pass_at_k}) > 1


def _draw_curves(chart: Chart, axes: Axes, report: ScreeningReport) -> str:
    """pass@k against k: a few curves in colour and named, the others grey."""
    rows = report.checkpoints
    ks = sorted({k for c in rows for k in c.pass_at_k})
    cut = len(common_beginning([c.name for c in rows]))
    shown = [i for i in highlighted(report) if rows[i].pass_at_k]
    others = [i for i, c in enumerate(rows) if c.pass_at_k and i not in shown]
    grey: Any = {"color": LIGHT["wrong"], "linewidth": 1.0, "alpha": 0.6}
    keys, said = [], []
    for index in [*others, *shown]:
        c = rows[index]
        known = [k for k in ks if k in c.pass_at_k]
        words = ", ".join(f"pass@{k} {c.pass_at_k[k]:.3f}" for k in known)
        style = series(shown.index(index)) if index in shown else grey
        (line,) = axes.plot(known, [c.pass_at_k[k] for k in known], **style)
        chart.tip(line, f"{c.name}: {words}")
        if index in shown:
            keys.append((line, c.name[cut:]))
            said.append(f"{c.name}: {words}")
            for k in known:
                if (interval := c.intervals.get(f"pass_at_{k}")) is not None:
                    axes.plot([k, k], interval, color=style["color"], linewidth=1.5, alpha=0.5)
    if others:
        words = "one other" if len(others) == 1 else f"{len(others)} others"
        keys.append((Line2D([], [], **grey), words))
    axes.set(ylim=(0.0, 1.03))
    k_axis(axes, ks)
    axes.grid(axis="y")
    chart.legend(keys)
    return "; ".join(said)


def k_axis(axes: Axes, ks: Sequence[int]) -> None:
    """A logarithmic axis of k; of more than nine labels, which would run together, only some."""
    shown = ks[::-1][:: -(-len(ks) // 9)]
    axes.set(xscale="log", xlabel="k (logarithmic)")
    axes.set_xticks(shown, [f"{k}" for k in shown])
    axes.set_xticks([], minor=True)


def _name_rows(axes: Axes, report: ScreeningReport, below: str) -> None:
    names = [c.name for c in report.checkpoints]
    cut = len(common_beginning(names))
    name_rows(axes, [name[cut:] for name in names])
    axes.grid(axis="x")
    axes.set_xlabel(below)


def _whisker(axes: Axes, checkpoint: CheckpointScreening, measure: str, y: float) -> None:
    if (ends := checkpoint.intervals.get(measure)) is not None:
        style: Any = {"color": LIGHT["ink"], "linewidth": 1.5, "marker": "|", "markersize": 9}
        axes.plot(ends, [y, y], **style)


def _say_interval(checkpoint: CheckpointScreening, measure: str) -> str:
    """`` (95 %: low to high)``, or nothing."""
    interval = checkpoint.intervals.get(measure)
    return "" if interval is None else f" (95 %: {interval.low:.3f} to {interval.high:.3f})"
