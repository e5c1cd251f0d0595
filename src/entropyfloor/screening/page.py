"""A screening as one HTML file that needs nothing else: style, figures and text are inside."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from entropyfloor.io import write_atomic, write_pictures
from entropyfloor.render.page import render_page
from entropyfloor.render.table import Column, Style, Table
from entropyfloor.render.text import common_beginning
from entropyfloor.screening.figures import (
    highlighted,
    pass_at_k_figure,
    pass_rate_figure,
    row_figures,
    token_entropy_figure,
    write_plot,
)
from entropyfloor.screening.paired_page import paired_parts
from entropyfloor.screening.report import (
    Calibration,
    CheckpointScreening,
    ExampleRollout,
    ScreeningReport,
)
from entropyfloor.screening.table import (
    caption,
    further_table,
    gates_table,
    screening_markdown,
    screening_table,
    undecided_advice,
    verdict_style,
    verdict_word,
)
from entropyfloor.stats.groups import p_star

_LONGEST = 2000  # characters of a prompt or completion that are shown


@dataclass(frozen=True)
class _Row:
    """A checkpoint as the page shows it."""

    record: CheckpointScreening
    open: bool
    charts: tuple[Markup, ...]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def word(self) -> str:
        return verdict_word(self.record)

    @property
    def style(self) -> Style:
        return verdict_style(self.record)

    @property
    def summary(self) -> str:
        entropy = f"entropy {self.record.entropy_nats:.3f}"
        rate = self.record.pass_at_1
        return entropy if rate is None else f"{entropy}, pass@1 {rate:.3f}"


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


def write_page(report: ScreeningReport, path: str | Path) -> Path:
    """Write the page and return its path; missing parent directories are made.

    The file holds no script and makes no request: it can be mailed, archived and printed.
    """
    write_atomic(Path(path), screening_html(report))
    return Path(path)


def screening_html(report: ScreeningReport) -> str:
    """Return the page as text."""
    advice, settings = report.recommendation, report.settings
    shown = highlighted(report, 8)
    rows = [
        _Row(record, index in shown, _charts(index, report))
        for index, record in enumerate(report.checkpoints)
    ]
    size = settings.get("group_size")
    curves = pass_at_k_figure(report)
    return render_page(
        "screening/page.html.j2",
        settings=settings,
        rows=rows,
        beginning=common_beginning([row.name for row in rows]),
        advice=advice,
        undecided=undecided_advice(report),
        # One checkpoint leaves nothing to choose.
        predictors=[] if advice is None or len(rows) < 2 else list(advice.predictors.items()),
        calibration=report.calibration,
        correlations=_correlations(report.calibration),
        counts=_counts(rows),
        scored=report.has_reward,
        p_star=None if size is None else p_star(size),
        lead=caption(report),
        table=screening_table(report).to_html(),
        further=further_table(report).to_html(),
        gates=gates_table(report).to_html() if report.gates else None,
        gates_failed=sum(not gate.passed for gate in report.gates),
        sentence=_sentence,
        figures={name: chart.svg(name) for name, chart in row_figures(report).items()},
        pass_at_k=None if curves is None else curves.svg("pass-at-k"),
        examples=_examples(rows),
        degenerate=_degenerate(rows),
        pairs=paired_parts(report.comparisons),
        open_names={row.name for row in rows if row.open},
    )


def _charts(index: int, report: ScreeningReport) -> tuple[Markup, ...]:
    record = report.checkpoints[index]
    charts = (pass_rate_figure(record, report), token_entropy_figure(record))
    return tuple(c.svg(f"c{index}-{i}") for i, c in enumerate(charts) if c is not None)


def _counts(rows: Iterable[_Row]) -> list[tuple[str, str, int]]:
    """(verdict, style, how many), the good ones first."""
    order = ["ready", "not flagged", "at risk", "collapsed", "junk", "flagged", "undecided"]
    counts = Counter((row.word, row.style) for row in rows)
    return sorted(((w, s, n) for (w, s), n in counts.items()), key=lambda c: order.index(c[0]))


def _correlations(calibration: Calibration | None) -> Markup | None:
    if calibration is None or not calibration.correlations:
        return None
    headers = ("predictor", "Spearman", "p", "test", "checkpoints")
    rows = (
        (c.predictor, f"{c.spearman:+.2f}", f"{c.p_value:.3f}", c.method, f"{c.num_checkpoints}")
        for c in calibration.correlations
    )
    columns = tuple(Column(h, "left" if h == "predictor" else "right") for h in headers)
    return Table("Rank correlations", columns, tuple(rows)).to_html()


def _sentence(words: str) -> str:
    """A capital at the start, a full stop at the end; a name in front keeps its spelling."""
    words = words.strip()
    if re.match(r"[a-z][a-z'-]*[ ,]", words):
        words = words[0].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else f"{words}."


def _examples(rows: list[_Row]) -> list[dict[str, Any]]:
    """Examples by prompt, then by checkpoint."""
    prompts = {e.prompt_index: e.prompt for row in reversed(rows) for e in row.record.examples}
    return [
        {
            "index": index,
            "prompt": _cut(text),
            "columns": [
                {"row": row, "rollouts": shown}
                for row in rows
                if (shown := [_shown(e) for e in row.record.examples if e.prompt_index == index])
            ],
        }
        for index, text in sorted(prompts.items())
    ]


def _degenerate(rows: list[_Row]) -> list[dict[str, Any]]:
    """Checkpoints with degenerate text: the shares of its kinds, and examples."""
    return [
        {
            "row": row,
            "shares": ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()),
            "examples": [
                (f"{e.kind}, prompt {e.rollout.prompt_index}", _shown(e.rollout))
                for e in row.record.degenerate_examples
            ],
        }
        for row in rows
        if (shares := row.record.degenerate_text)
    ]


def _shown(example: ExampleRollout) -> dict[str, str]:
    shown = [f"{example.num_tokens} tokens", f"{example.entropy_nats:.3f} nats"]
    if example.reward is not None:
        shown.insert(0, f"reward {example.reward:g}")
    if example.truncated:
        shown.append("truncated")
    return {"facts": " · ".join(shown), "text": _cut(example.text) or "(empty)"}


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}\n… {len(text) - _LONGEST} more characters"
