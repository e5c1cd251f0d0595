"""A measurement of the coupling as one HTML file that needs nothing else."""

from pathlib import Path

from entropyfloor.coupling import figures
from entropyfloor.coupling.findings import (
    duration_text,
    findings,
    interval_words,
    sentence,
    stage_words,
)
from entropyfloor.coupling.report import CouplingReport
from entropyfloor.coupling.table import caption, coupling_columns
from entropyfloor.render.page import flat_settings, page_environment, style_sheet


def write_coupling_html(report: CouplingReport, path: str | Path) -> Path:
    """Write the page and return its path; no script, no request."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(coupling_html(report), encoding="utf-8")
    return target


def coupling_html(report: CouplingReport) -> str:
    """Return the page as text."""
    aligned = [c for c in report.checkpoints if c.alignment is not None]
    return (
        page_environment()
        .get_template("render/templates/coupling.html.j2")
        .render(
            style=style_sheet("screening.css"),
            stage=stage_words(report),
            report=report,
            caption=caption(report),
            findings=[sentence(words) for words in findings(report)],
            columns=coupling_columns(report),
            words=interval_words,
            duration=duration_text,
            against=figures.against_figure(report),
            reward=figures.curve_figure(report, "mean_reward", "reward", "s0"),
            loss=figures.curve_figure(report, "sft_loss", "SFT loss (nats per token)", "s1"),
            identity=figures.identity_figure(report),
            layers=[(c, figures.layers_figure(c)) for c in aligned],
            flat_settings=list(flat_settings(report.settings)),
        )
    )
