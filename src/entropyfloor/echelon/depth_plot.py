"""Measures against depth, one line per loss: entropy, pass rates, degenerate groups."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropyfloor.echelon.conclusions import ladders
from entropyfloor.echelon.depths import depth_of
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

# Okabe and Ito's colours, with markers, so that lines stay apart without colour too.
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
_GREY = "#7f7f7f"


def write_depth_plot(report: ScreeningReport, path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path; whiskers are 95 % intervals."""
    largest = max(report.settings["ks"])
    panels = [
        ("entropy_nats", "rollout entropy (nats)"),
        ("pass_at_1", "pass@1"),
        (f"pass_at_{largest}", f"pass@{largest}"),
        ("degenerate_fraction", f"degenerate groups, g = {report.settings['group_size']}"),
    ]
    figure = Figure(figsize=(8.5, 6.0), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    base = [c for c in report.checkpoints if depth_of(c.name)[1] == 0]
    for axes, (measure, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for number, (loss, steps) in enumerate(ladders(report).items()):
            colour, marker = _STYLES[number % len(_STYLES)]
            # A little sideways, so that equal values of two losses can both be seen.
            _line(axes, [*base, *steps], measure, loss, colour, marker, shift=0.06 * number)
        axes.set_ylabel(label)
        axes.set_xlabel("epochs")
        axes.set_xticks(sorted({depth_of(c.name)[1] for c in report.checkpoints}))
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if measure == "entropy_nats":
            _threshold(axes, report)
        else:
            axes.set_ylim(-0.03, 1.03)
    figure.axes[0].legend(fontsize=8)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target


def _value(checkpoint: CheckpointScreening, measure: str) -> float:
    if measure.startswith("pass_at_") and measure != "pass_at_1":
        return checkpoint.pass_at_k[int(measure.removeprefix("pass_at_"))]
    return float(getattr(checkpoint, measure))


def _line(
    axes: Axes,
    steps: Sequence[CheckpointScreening],
    measure: str,
    loss: str,
    colour: str,
    marker: str,
    *,
    shift: float,
) -> None:
    values = [_value(step, measure) for step in steps]
    intervals = [step.intervals.get(measure) for step in steps]
    below = [
        0.0 if i is None else max(0.0, v - i.low) for v, i in zip(values, intervals, strict=True)
    ]
    above = [
        0.0 if i is None else max(0.0, i.high - v) for v, i in zip(values, intervals, strict=True)
    ]
    axes.errorbar(
        [depth_of(step.name)[1] + shift for step in steps],
        values,
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=5,
        capsize=3,
        label=loss.upper(),
    )


def _threshold(axes: Axes, report: ScreeningReport) -> None:
    tau_h = report.settings["tau_h"]
    axes.axhline(tau_h, color=_GREY, linestyle="--", linewidth=1, label=f"tau_H = {tau_h:g}")
    values = [c.entropy_nats for c in report.checkpoints]
    # The base's entropy would flatten checkpoints that differ by hundredths.
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
