"""A coupling as one HTML file, and everything that a measurement leaves: JSON, Markdown, PNG."""

from pathlib import Path

from entropyfloor.coupling import figures
from entropyfloor.coupling.report import CouplingReport
from entropyfloor.coupling.table import (
    answer,
    caption,
    coupling_markdown,
    coupling_table,
    durations_table,
    layers_table,
)
from entropyfloor.io import save_json, write_atomic, write_pictures
from entropyfloor.render.page import render_page


def write_report(report: CouplingReport, folder: str | Path) -> None:
    """Write coupling.json, .md, .html and .png; a missing folder is made."""
    target = Path(folder)
    save_json(target / "coupling.json", report.to_dict())
    write_atomic(target / "coupling.md", coupling_markdown(report))
    write_pictures(
        {
            target / "coupling.html": lambda path: write_atomic(path, coupling_html(report)),
            target / "coupling.png": lambda path: figures.coupling_picture(report).save(path),
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
        curves=figures.curve_charts(report),
        identity=figures.identity_chart(report),
        metrics=coupling_table(report),
        durations=durations_table(report),
        layers=[(c, figures.layers_chart(c), layers_table(c)) for c in report.aligned],
    )
