"""An echelon as one HTML file, and everything that a run leaves to read: JSON, Markdown, PNG."""

from dataclasses import asdict
from pathlib import Path

from entropyfloor.echelon import figures
from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.rungs import count, epochs, outcome_words
from entropyfloor.echelon.table import echelon_markdown, tables
from entropyfloor.io import save_json, write_atomic, write_pictures
from entropyfloor.render.figure import key
from entropyfloor.render.page import render_page


def write_report(comparison: EchelonComparison, folder: str | Path) -> None:
    """Write echelon.json, .md, .html and .png; a missing folder is made."""
    target = Path(folder)
    save_json(target / "echelon.json", {**comparison.to_dict(), "answer": answer(comparison)})
    write_atomic(target / "echelon.md", echelon_markdown(comparison))
    write_pictures(
        {
            target / "echelon.html": lambda path: write_atomic(path, echelon_html(comparison)),
            target / "echelon.png": lambda path: figures.ladder_picture(comparison).save(path),
        }
    )


def echelon_html(comparison: EchelonComparison) -> str:
    """Return the page as text."""
    plan = comparison.plan
    settings = {**asdict(plan), "seconds of all cells": f"{comparison.seconds:.0f}"}
    losses = f"{len(plan.losses)} loss{'' if len(plan.losses) == 1 else 'es'}"
    depths = f"{count(len(plan.depths), 'depth')} (up to {epochs(plan.depths[-1])})"
    return render_page(
        "echelon/page.html.j2",
        settings=settings,
        name=plan.name,
        losses=losses,
        caption=f"{losses} × {depths} × {count(len(plan.seeds), 'seed')}",
        plan=plan,
        through=any(rung.outcomes for rung in comparison.rungs),
        missing=bool(comparison.missing),
        outcome=outcome_words(plan.outcome),
        answer=answer(comparison),
        key=key,
        legend=figures.legend(comparison),
        ladders=figures.ladder_charts(comparison),
        loss_legend=figures.loss_legend(comparison),
        by_loss=figures.loss_charts(comparison),
        frontier=figures.frontier_charts(comparison),
        scatter=figures.predictor_charts(comparison),
        regrets=figures.regret_charts(comparison),
        tables=tables(comparison),
    )
