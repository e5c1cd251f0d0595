"""The difference in pass@k of two checkpoints for every k, with its simultaneous band."""

from pathlib import Path

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from entropyfloor.render.figure import Chart
from entropyfloor.render.palette import LIGHT
from entropyfloor.screening.figures import apart
from entropyfloor.screening.paired import PairedComparison

_WIDTH, _HEIGHT = 370, 260


def band_figure(pair: PairedComparison) -> Chart | None:
    """pass@k of the second minus the first, against k; None for fewer than two k."""
    points = [point for point in pair.band if point.band is not None]
    if len(points) < 2:
        return None
    said = "; ".join(
        f"k = {p.k}: {p.difference:+.3f} ({p.band.low:+.3f} to {p.band.high:+.3f})"
        for p in points
        if p.band is not None
    )
    title = f"pass@k, {pair.second} minus {pair.first}"
    chart = Chart(_WIDTH, _HEIGHT, title, said, margins=(52, 14, 14, 44))
    axes = chart.axes(below="k (logarithmic)")
    ks = [p.k for p in points]
    low, high = ([p.band[end] for p in points if p.band is not None] for end in (0, 1))
    axes.fill_between(ks, low, high, color=LIGHT["fill"], alpha=0.3, linewidth=0)
    axes.plot(ks, [p.difference for p in points], color=LIGHT["s0"], linewidth=2)
    axes.axhline(0.0, color=LIGHT["ink"], linewidth=1)
    for index, p in enumerate(points):
        colour = LIGHT["good" if p.k in pair.second_ahead else "bad"]
        if p.k in pair.first_ahead + pair.second_ahead:
            (mark,) = axes.plot([p.k], [p.difference], marker="o", color=colour, markersize=5)
            chart.tip(mark, said.split("; ")[index])
    axes.set(xscale="log")
    powers = [k for k in ks if k & (k - 1) == 0 or k == ks[-1]]
    axes.xaxis.set_major_locator(FixedLocator(apart(powers)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.2g}"))
    return chart


def write_paired_plot(pair: PairedComparison, path: str | Path) -> Path:
    """Write the figure as the suffix says.

    Raises:
        ValueError: there is no band: no reward, or one prompt.

    """
    chart = band_figure(pair)
    if chart is None:
        raise ValueError(
            f"{pair.first} and {pair.second} have no band to plot: it needs a reward, and two "
            "samples and two prompts or more of both"
        )
    return chart.save(path)
