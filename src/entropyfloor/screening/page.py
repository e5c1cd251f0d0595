"""A screening as one HTML file that needs nothing else: style, figures and text are inside.

Names, prompts and completions are untrusted: everything is escaped, control characters are made
visible, and the page's own policy forbids scripts and requests.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from entropyfloor.render.figure_parts import common_beginning, highlighted
from entropyfloor.render.page import flat_settings, page_environment, style_sheet
from entropyfloor.screening.columns import (
    columns,
    further_columns,
    interval_words,
    undecided_advice,
    verdict_class,
    verdict_word,
)
from entropyfloor.screening.histogram_figures import pass_rate_figure, token_entropy_figure
from entropyfloor.screening.pass_at_k_figure import pass_at_k_figure
from entropyfloor.screening.records import ExampleRollout
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.screening.row_figures import degenerate_figure, entropy_figure, headroom_figure
from entropyfloor.stats.groups import p_star

_LONGEST = 2000  # characters of a completion that are shown


@dataclass(frozen=True)
class _Row:
    """A checkpoint as the page shows it."""

    record: CheckpointScreening
    short: str
    chosen: bool
    open: bool
    charts: tuple[Markup, ...]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def word(self) -> str:
        return verdict_word(self.record)

    @property
    def kind(self) -> str:
        return verdict_class(self.record)

    @property
    def facts(self) -> str:
        found = [f"entropy {self.record.entropy_nats:.3f}"]
        if self.record.pass_at_1 is not None:
            found.append(f"pass@1 {self.record.pass_at_1:.3f}")
        return ", ".join(found)


def write_screening_html(report: ScreeningReport, path: str | Path) -> Path:
    """Write the page and return its path; missing parent directories are made.

    The file holds no script and makes no request: it can be mailed, archived and printed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(screening_html(report), encoding="utf-8")
    return target


def screening_html(report: ScreeningReport) -> str:
    """Return the page as text."""
    advice = report.recommendation
    shown = highlighted(report, 8)
    beginning = common_beginning([record.name for record in report.checkpoints])
    rows = [
        _Row(
            record,
            short=record.name[len(beginning) :],
            chosen=advice is not None and advice.name == record.name,
            open=index in shown,
            charts=_charts(record, report),
        )
        for index, record in enumerate(report.checkpoints)
    ]
    settings = report.settings
    size = settings.get("group_size")
    return (
        page_environment()
        .get_template("render/templates/screening.html.j2")
        .render(
            style=style_sheet("screening.css"),
            rows=rows,
            beginning=beginning,
            long_names=any(len(row.short) > 30 for row in rows),
            advice=advice,
            undecided=undecided_advice(report),
            # One checkpoint leaves nothing to choose.
            predictors=[] if advice is None or len(rows) < 2 else list(advice.predictors.items()),
            calibration=report.calibration,
            counts=_counts(rows),
            scored=report.has_reward,
            settings=settings,
            flat_settings=list(flat_settings(settings)),
            p_star=None if size is None else p_star(size),
            caption=_caption(settings),
            columns=columns(report),
            further=further_columns(report),
            words=interval_words,
            sentence=_sentence,
            entropy=entropy_figure(report),
            degenerate=degenerate_figure(report),
            pass_at_k=pass_at_k_figure(report),
            headroom=headroom_figure(report),
            examples=_examples(rows),
        )
    )


def _charts(record: CheckpointScreening, report: ScreeningReport) -> tuple[Markup, ...]:
    found = (pass_rate_figure(record, report), token_entropy_figure(record))
    return tuple(chart for chart in found if chart is not None)


def _counts(rows: Iterable[_Row]) -> list[tuple[str, str, int]]:
    """(verdict, class, how many), the good ones first."""
    order = ["ready", "not flagged", "at risk", "collapsed", "flagged", "undecided"]
    found = Counter((row.word, row.kind) for row in rows)
    return [
        (w, k, n) for (w, k), n in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


def _caption(settings: dict[str, Any]) -> str:
    prompts = settings.get("prompts", {})
    reward = settings.get("reward")
    return (
        f"{prompts.get('count', '?')} prompts × {settings.get('num_samples', '?')} rollouts of at "
        f"most {settings.get('max_new_tokens', '?')} tokens at temperature "
        f"{settings.get('temperature', 1.0):g}, " + (f"reward {reward}" if reward else "no reward")
    )


def _sentence(words: str) -> str:
    """A capital at the start, a full stop at the end; a name in front keeps its spelling."""
    words = words.strip()
    if re.match(r"[a-z][a-z'-]*[ ,]", words):
        words = words[0].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else f"{words}."


def _examples(rows: list[_Row]) -> list[dict[str, Any]]:
    """Examples by prompt, then by checkpoint."""
    prompts: dict[int, str] = {}
    for row in rows:
        for example in row.record.examples:
            prompts.setdefault(example.prompt_index, example.prompt)
    return [
        {
            "index": index,
            "prompt": _cut(text),
            "columns": [
                {"name": row.name, "word": row.word, "kind": row.kind, "rollouts": shown}
                for row in rows
                if (shown := [_shown(e) for e in row.record.examples if e.prompt_index == index])
            ],
        }
        for index, text in sorted(prompts.items())
    ]


def _shown(example: ExampleRollout) -> dict[str, str]:
    facts = [f"{example.num_tokens} tokens", f"{example.entropy_nats:.3f} nats"]
    if example.reward is not None:
        facts.insert(0, f"reward {example.reward:g}")
    if example.truncated:
        facts.append("truncated")
    return {"facts": " · ".join(facts), "text": _cut(example.text) or "(empty)"}


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}\n… {len(text) - _LONGEST} more characters"
