"""Paired comparisons as parts of a page, as one HTML file of their own, and as a figure.

The figure is the difference in pass@k for every k, with its simultaneous band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from entropyfloor.io import write_atomic
from entropyfloor.render.figure import Chart
from entropyfloor.render.page import render_page
from entropyfloor.render.palette import LIGHT
from entropyfloor.screening.figures import k_axis
from entropyfloor.screening.paired import PairedComparison
from entropyfloor.screening.paired_table import lost_and_gained, paired_table, solved_table

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
    axes = chart.axes()
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
    k_axis(axes, [k for k in ks if k & (k - 1) == 0 or k == ks[-1]])
    axes.yaxis.set_major_formatter("{x:+.2g}")
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


@dataclass(frozen=True)
class PairedPart:
    """One comparison as a page shows it."""

    pair: PairedComparison
    chart: Markup | None
    table: Markup
    lists: tuple[tuple[str, Markup], ...]


def paired_parts(pairs: Sequence[PairedComparison]) -> list[PairedPart]:
    """What a page shows of each, ids of its figures apart."""
    parts = []
    for index, pair in enumerate(pairs):
        chart = band_figure(pair)
        lists = tuple(
            (title, solved_table(pair, rows, title).to_html())
            for title, rows in lost_and_gained(pair)
        )
        svg = None if chart is None else chart.svg(f"band-{index}")
        parts.append(PairedPart(pair, svg, paired_table(pair).to_html(), lists))
    return parts


def write_paired_page(
    pairs: Sequence[PairedComparison], settings: Mapping[str, Any], path: str | Path
) -> Path:
    """Write the page and return its path; it holds no script and makes no request."""
    page = render_page(
        "screening/paired_page.html.j2", settings=settings, parts=paired_parts(pairs)
    )
    write_atomic(Path(path), page)
    return Path(path)
