"""Files that a screening leaves behind in its output folder, beside the rollouts."""

from pathlib import Path

from entropyfloor.screening.report import ScreeningReport


def write_report(report: ScreeningReport, folder: Path) -> None:
    """Write screening.json, screening.md, screening.html and screening.png."""
    from entropyfloor.screening.plot import write_screening_plot

    report.write_json(folder / "screening.json")
    (folder / "screening.md").write_text(report.to_markdown(), encoding="utf-8")
    report.write_html(folder / "screening.html")
    write_screening_plot(report, folder / "screening.png")
