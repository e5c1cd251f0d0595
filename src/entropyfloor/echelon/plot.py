"""Entropy, pass@1, pass@k and degenerate groups against depth, before and after RL: a picture."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from entropyfloor.echelon.axes import (
    Panel,
    all_spreads,
    base_spread,
    ladder,
    logarithmic,
    panels,
    rounded_range,
)
from entropyfloor.echelon.compare import EchelonComparison

# Okabe and Ito's colours and two more, with markers, so that losses stay apart without colour too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#946200", "#4f5660", "#6a3fb5", "#7d2a1e")
_MARKERS = "os^DvXP*"
_GREY = "#7f7f7f"


def write_echelon_plot(comparison: EchelonComparison, path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path; bars reach over the seeds."""
    shown = panels(comparison)
    rows = 2 if any(panel.after is not None for panel in shown) else 1
    measures = list(dict.fromkeys(panel.measure for panel in shown))
    picture = Figure(figsize=(3.8 * len(measures), 3.1 * rows + 0.6), layout="constrained", dpi=130)
    FigureCanvasAgg(picture)
    grid = picture.subplots(rows, len(measures), squeeze=False)
    for panel in shown:
        axes = grid[0 if panel.after is None else 1][measures.index(panel.measure)]
        _draw(axes, panel, comparison)
    handles, labels = grid[0][0].get_legend_handles_labels()
    picture.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=8
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(target)
    return target


def _draw(axes: Axes, panel: Panel, comparison: EchelonComparison) -> None:
    plan = comparison.plan
    log, count = logarithmic(plan.depths), len(plan.losses)
    width = (plan.depths[-1] - plan.depths[0]) or 1.0
    for place, loss in enumerate(plan.losses):
        found = ladder(comparison, loss, panel)
        # A little sideways, so that bars of several losses can all be seen.
        aside = 0.012 * (place - (count - 1) / 2)
        depths = [d * (1 + 2 * aside) if log else d + aside * width for d, _ in found]
        axes.errorbar(
            depths,
            [s.mean for _, s in found],
            # The mean of equal numbers can be a rounding error beside them.
            yerr=[
                [max(0.0, s.mean - s.low) for _, s in found],
                [max(0.0, s.high - s.mean) for _, s in found],
            ],
            color=_COLOURS[place % len(_COLOURS)],
            # Moved on by one when colours begin anew, as on the page: the ninth is not the first.
            marker=_MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            elinewidth=0.8,
            label=loss,
        )
    if (base := base_spread(comparison, panel)) is not None:
        axes.axhline(base.mean, color=_GREY, linewidth=1, label="base")
    if panel.measure == "entropy_nats":
        axes.axhline(plan.tau_h, color=_GREY, linestyle="--", linewidth=1, label="tau_H")
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(plan.depths, [f"{depth:g}" for depth in plan.depths])
    values = [v for s in all_spreads(comparison, panel.measure) for v in (s.low, s.high)]
    if panel.measure != "entropy_nats":
        axes.set_ylim(*rounded_range(values))
    elif min(values) > 0 and max(values) > 20 * min(values):
        # The base's entropy would flatten rungs that differ by hundredths.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(*values, plan.tau_h) / 1.3, max(values) * 1.3)
    else:
        axes.set_ylim(0.0, max(*values, plan.tau_h) * 1.08)
    axes.set_title(panel.heading, fontsize=10)
    axes.set_xlabel("epochs of SFT" + (" (logarithmic)" if log else ""), fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
