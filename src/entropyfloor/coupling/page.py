"""A coupling as one HTML file with its figures, and all else that a measurement leaves to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport
from entropyfloor.coupling.table import (
    answer,
    caption,
    coupling_markdown,
    coupling_table,
    durations_table,
    layers_table,
)
from entropyfloor.io import save_json, write_atomic, write_pictures
from entropyfloor.render.figure import Chart, name_rows, series
from entropyfloor.render.page import render_page
from entropyfloor.render.palette import LIGHT
from entropyfloor.stats.intervals import Interval

_SIZE = (370, 280)
_MEASURES = {"mean_reward": ("Reward", 0), "sft_loss": ("SFT loss (nats per token)", 1)}
_WHISKER: dict[str, Any] = {"color": LIGHT["ink"], "linewidth": 1.3}
_LABEL: dict[str, Any] = {"xytext": (6, 5), "textcoords": "offset points", "fontsize": 12}
_THRESHOLD: dict[str, Any] = {"color": LIGHT["bad"], "linewidth": 1.5, "linestyle": (0, (5, 4))}


def write_report(report: CouplingReport, folder: str | Path) -> None:
    """Write coupling.json, .md, .html and .png; a missing folder is made."""
    target = Path(folder)
    save_json(target / "coupling.json", report.to_dict())
    write_atomic(target / "coupling.md", coupling_markdown(report))
    write_pictures(
        {
            target / "coupling.html": lambda path: write_atomic(path, coupling_html(report)),
            target / "coupling.png": lambda path: coupling_picture(report).save(path),
        }
    )


def coupling_html(report: CouplingReport) -> str:
    """Return the page as text."""
    return render_page(
        "coupling/page.html.j2",
        settings=report.settings,
        stage=report.stage,
        caption=caption(report),
        answer=answer(report),
        unit=report.step_unit,
        curves=curve_charts(report),
        identity=identity_chart(report),
        metrics=coupling_table(report),
        durations=durations_table(report),
        layers=[(c, layers_chart(c), layers_table(c)) for c in report.aligned],
    )


def curve_charts(report: CouplingReport) -> list[Chart]:
    """Reward against SFT loss, and each against the step."""
    against = Chart(*_SIZE, "Reward against SFT loss", "at every checkpoint, in the run's order")
    _against(against, against.axes(grid="both"), report)
    charts = [against]
    for name, (title, _) in _MEASURES.items():
        chart = Chart(*_SIZE, title, "against the step, at every checkpoint")
        _along(chart, chart.axes(), report, name)
        charts.append(chart)
    return charts


def coupling_picture(report: CouplingReport) -> Chart:
    """The three curves side by side."""
    chart = Chart(1170, 320, report.stage)
    titles = ["Reward against SFT loss", *(title for title, _ in _MEASURES.values())]
    against, *along = chart.grid([titles])[0]
    _against(chart, against, report)
    for axes, name in zip(along, _MEASURES, strict=True):
        _along(chart, axes, report, name)
    return chart


def identity_chart(report: CouplingReport) -> Chart:
    """Rise in SFT loss and KL of every checkpoint."""
    rows = [(c.name, c.identity) for c in report.checkpoints if c.identity is not None]
    chart = Chart(_SIZE[0], 90 + 24 * len(rows), "Rise in SFT loss and KL")
    axes = chart.axes(below="nats per answer", grid="x")
    axes.axvline(0.0, color=LIGHT["soft"], linewidth=1.0)
    axes.locator_params(axis="x", nbins=5)
    marks = []
    for place, (name, exact) in enumerate(rows):
        axes.hlines(place, exact.rise, exact.kl, color=LIGHT["soft"], linewidth=1.5)
        for value, style in ((exact.kl, series(0)), (exact.rise, series(1))):
            (mark,) = axes.plot([value], [place], linestyle="none", **style)
            words = f"rise {exact.rise:.3f}, KL(SFT‖RL) {exact.kl:.3f}, gap {exact.gap:+.3f}"
            chart.tip(mark, f"{name}: {words}")
            marks.append(mark)
    name_rows(axes, [name for name, _ in rows])
    chart.legend([(marks[0], "KL(SFT‖RL)"), (marks[1], "rise in SFT loss")], columns=2)
    return chart


def layers_chart(checkpoint: CheckpointCoupling) -> Chart | None:
    """Cosine of the two gradients by layer, with its interval and the bound."""
    assert checkpoint.alignment is not None
    layers = [p for p in checkpoint.alignment.layers if p.agreement.cosine is not None]
    if not layers:
        return None
    chart = Chart(_SIZE[0], 60 + 24 * len(layers), f"Gradients at {checkpoint.name}")
    axes = chart.axes(below="cosine of the SFT and the RL gradient", grid="x")
    for place, layer in enumerate(layers):
        cosine, bound = layer.agreement.cosine or 0.0, layer.cosine_bound
        words = f"{layer.name}: cosine {cosine:+.3f}"
        if bound is not None:
            axes.vlines(
                [-bound, bound], place - 0.3, place + 0.3, **_THRESHOLD | {"linestyle": "-"}
            )
            words += f", at most {bound:.3f} by its top singular directions"
        if layer.agreement.interval is not None:
            axes.hlines(place, *layer.agreement.interval, **_WHISKER)
        (mark,) = axes.plot([cosine], [place], linestyle="none", **series(0))
        chart.tip(mark, words)
    name_rows(axes, [layer.name for layer in layers])
    axes.set_xlim(-1.05, 1.05)
    return chart


def _against(chart: Chart, axes: Axes, report: CouplingReport) -> None:
    rows = report.checkpoints
    axes.plot(_values(rows, "sft_loss"), _values(rows, "mean_reward"), color=LIGHT["s5"])
    for c in rows:
        axes.hlines(c.mean_reward, *_ends(c, "sft_loss"), **_WHISKER)
        axes.vlines(c.sft_loss, *_ends(c, "mean_reward"), **_WHISKER)
        (mark,) = axes.plot([c.sft_loss], [c.mean_reward], linestyle="none", **series(0))
        chart.tip(mark, f"{c.name}: SFT loss {c.sft_loss:.3f}, reward {c.mean_reward:.3f}")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    labelled: list[tuple[float, float]] = []
    for c in rows:  # steps that would be written over each other are in the tooltips
        x, y = c.sft_loss / (right - left), c.mean_reward / (high - low)
        if all(abs(x - x0) > 0.06 or abs(y - y0) > 0.06 for x0, y0 in labelled):
            labelled.append((x, y))
            point = (c.sft_loss, c.mean_reward)
            axes.annotate(f"{c.step:g}", point, color=LIGHT["ink"], **_LABEL)
    axes.set_xlabel("SFT loss (nats per token of held-out demonstrations)")


def _along(chart: Chart, axes: Axes, report: CouplingReport, name: str) -> None:
    """One measure against the step, with best step and threshold."""
    rows, place = report.checkpoints, _MEASURES[name][1]
    for duration in report.durations:
        if (step := duration.measured.step) is not None:
            line = axes.axvline(step, **_THRESHOLD)
            chart.tip(line, f"{duration.question}, by measurement: {step:g}")
    axes.plot([c.step for c in rows], _values(rows, name), color=series(place)["color"])
    for c, value in zip(rows, _values(rows, name), strict=True):
        axes.vlines(c.step, *_ends(c, name), **_WHISKER)
        (mark,) = axes.plot([c.step], [value], linestyle="none", **series(place))
        chart.tip(mark, f"{c.name}: {value:.3f}")
    axes.set_xlabel(report.step_unit)


def _values(rows: Sequence[CheckpointCoupling], name: str) -> list[float]:
    return [getattr(checkpoint, name) for checkpoint in rows]


def _ends(checkpoint: CheckpointCoupling, name: str) -> Interval:
    value = getattr(checkpoint, name)
    return checkpoint.intervals.get(name) or Interval(value, value)
