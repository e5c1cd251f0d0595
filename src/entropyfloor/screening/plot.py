"""A screening as a picture: entropy with the tau_H line, pass@k and degenerate groups."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropyfloor.render.figure_parts import common_beginning
from entropyfloor.render.svg import elide
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

# Colours that stay apart in the common forms of colour blindness (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7f7f7f"
_LETTERS = 28  # of a name below the panels
_CROWDED = 12  # from here on names stand upright


def write_screening_plot(report: ScreeningReport, path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Three panels with a reward, the entropy alone without one. Whiskers are 95 % intervals over
    prompts.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    panels = 3 if report.has_reward else 1
    count = len(report.checkpoints)
    cut = len(common_beginning([checkpoint.name for checkpoint in report.checkpoints]))
    names = [elide(checkpoint.name[cut:], _LETTERS) for checkpoint in report.checkpoints]
    crowded = count > _CROWDED
    width = min(24.0, max(6.0, 1.6 + (0.35 if crowded else 0.7) * count))
    # A name at an angle takes about this much below the panels.
    below = 0.9 + max(map(len, names)) * (0.07 if crowded else 0.04)
    figure = Figure(figsize=(width, below + 1.9 * panels), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False)
    axes: list[Axes] = [row[0] for row in grid]
    _entropy(axes[0], report)
    if report.has_reward:
        _pass_rates(axes[1], report)
        _degenerate(axes[2], report)
    axes[-1].set_xticks(
        range(count),
        names,
        rotation=90 if crowded else 35,
        ha="center" if crowded else "right",
    )
    # One checkpoint would be a bar as wide as the figure.
    axes[-1].set_xlim(-0.7 - max(0, 2 - count), count - 0.3 + max(0, 2 - count))
    for panel in axes:
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(target)
    return target


def _whiskers(
    checkpoints: Sequence[CheckpointScreening], measure: str, values: Sequence[float]
) -> list[list[float]]:
    """Distances from the value to its interval's ends; zero where there is none."""
    below, above = [], []
    for checkpoint, value in zip(checkpoints, values, strict=True):
        interval = checkpoint.intervals.get(measure)
        below.append(0.0 if interval is None else max(0.0, value - interval.low))
        above.append(0.0 if interval is None else max(0.0, interval.high - value))
    return [below, above]


def _entropy(axes: Axes, report: ScreeningReport) -> None:
    tau_h = report.settings["tau_h"]
    values = [checkpoint.entropy_nats for checkpoint in report.checkpoints]
    whiskers = _whiskers(report.checkpoints, "entropy_nats", values)
    for index, checkpoint in enumerate(report.checkpoints):
        axes.errorbar(
            index,
            values[index],
            yerr=[[whiskers[0][index]], [whiskers[1][index]]],
            fmt="v" if checkpoint.flagged else "o",
            color=_RED if checkpoint.flagged else _BLUE,
            capsize=3,
        )
    axes.axhline(tau_h, color=_GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"tau_H = {tau_h:g}",
        (1.0, tau_h),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=_GREY,
        fontsize=8,
    )
    # A base model at 2.7 nats would flatten checkpoints that differ by hundredths.
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("entropy (nats)")
    axes.set_title("rollout entropy; triangles are flagged", fontsize=9, loc="left")


def _legend_above(axes: Axes) -> None:
    axes.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False)


def _pass_rates(axes: Axes, report: ScreeningReport) -> None:
    largest = max(report.settings["ks"])
    series = [(1, _BLUE, "o")] if largest == 1 else [(1, _BLUE, "o"), (largest, _ORANGE, "s")]
    for shift, (k, colour, marker) in zip((-0.08, 0.08), series, strict=False):
        values = [
            (c.pass_at_1 if k == 1 else c.pass_at_k.get(k)) or 0.0 for c in report.checkpoints
        ]
        axes.errorbar(
            [index + shift for index in range(len(values))],
            values,
            yerr=_whiskers(report.checkpoints, f"pass_at_{k}", values),
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"pass@{k}",
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("pass rate")
    _legend_above(axes)


def _degenerate(axes: Axes, report: ScreeningReport) -> None:
    positions = list(range(len(report.checkpoints)))
    wrong = [c.degenerate_all_wrong or 0.0 for c in report.checkpoints]
    right = [c.degenerate_all_right or 0.0 for c in report.checkpoints]
    total = [a + b for a, b in zip(wrong, right, strict=True)]
    axes.bar(positions, wrong, color=_GREY, width=0.6, label="all wrong")
    axes.bar(positions, right, bottom=wrong, color=_GREEN, width=0.6, label="all right")
    axes.errorbar(
        positions,
        total,
        yerr=_whiskers(report.checkpoints, "degenerate_fraction", total),
        fmt="none",
        ecolor="black",
        capsize=3,
    )
    axes.set_ylim(0, 1.03)
    axes.set_ylabel(f"degenerate, g = {report.settings['group_size']}")
    _legend_above(axes)
