"""Paired comparisons as parts of a page, and as one HTML file of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from entropyfloor.io import write_atomic
from entropyfloor.render.page import render_page
from entropyfloor.screening.paired import PairedComparison
from entropyfloor.screening.paired_figures import band_figure
from entropyfloor.screening.paired_table import lost_and_gained, paired_table, solved_table


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
