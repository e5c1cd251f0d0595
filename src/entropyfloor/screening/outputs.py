"""Files that a screening leaves behind in its output folder, beside the rollouts."""

from functools import partial
from pathlib import Path

from entropyfloor.io import write_atomic
from entropyfloor.render.files import write_pictures
from entropyfloor.screening.figures import write_plot
from entropyfloor.screening.page import write_page
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.table import screening_markdown


def write_report(report: ScreeningReport, folder: Path) -> None:
    """Write screening.json and .md; then .html and .png, which may fail with a warning."""
    report.write_json(folder / "screening.json")
    write_atomic(folder / "screening.md", screening_markdown(report))
    write_pictures(
        {
            folder / "screening.html": partial(write_page, report),
            folder / "screening.png": partial(write_plot, report),
        }
    )
