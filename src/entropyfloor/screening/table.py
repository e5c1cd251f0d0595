"""A screening as a table for a terminal, and as Markdown."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from entropyfloor.render.svg import elide
from entropyfloor.screening.columns import (
    Column,
    columns,
    further_columns,
    interval_words,
    remarks,
    undecided_advice,
    verdict_class,
    verdict_word,
)
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

__all__ = ["advice_words", "remarks", "screening_markdown", "screening_table"]

_STYLES = {
    "ready": "green",
    "risk": "bold yellow",
    "collapsed": "bold red",
    "undecided": "cyan",
}
_TWO_LINES = 12  # more checkpoints than this get one line each, without the intervals below


def _caption(report: ScreeningReport) -> str:
    settings = report.settings
    scored = f", reward {settings['reward']}" if report.has_reward else ", no reward"
    return (
        f"{settings['prompts']['count']} prompts × {settings['num_samples']} samples, "
        f"T = {settings['temperature']:g}, ≤ {settings['max_new_tokens']} tokens{scored}, "
        f"seed {settings['seed']}; tau_H = {settings['tau_h']:g} nats; ranges are 95 % intervals "
        "over prompts"
    )


def screening_table(report: ScreeningReport, width: int | None = None) -> Table:
    """Build a rich table.

    Args:
        report: what to show.
        width: columns of the terminal. Where they are few, the measures that matter most stay,
            long names are shortened in the middle, and the caption names what was left out. None
            leaves nothing out.

    """
    every = columns(report)
    intervals = len(report.checkpoints) <= _TWO_LINES
    names = [checkpoint.name for checkpoint in report.checkpoints]
    longest = max([len("checkpoint"), *map(cell_len, names)])
    shown, room = (every, longest) if width is None else _fitting(report, every, width, intervals)
    caption = _caption(report)
    if left_out := [column.header for column in every if column not in shown]:
        caption += f"; no room for {', '.join(left_out)}: widen, or see the JSON or HTML"

    table = Table(title="Screening before RL", caption=caption, pad_edge=False)
    table.add_column("checkpoint", overflow="fold", min_width=min(room, longest))
    table.add_column("verdict", no_wrap=True)
    for column in shown:
        # Left to itself, rich takes from the numbers what the names' minimum asks for.
        fixed = None if width is None else _width(column, report.checkpoints, intervals)
        table.add_column(column.header, justify="right", width=fixed)
    for checkpoint in report.checkpoints:
        cells = []
        for column in shown:
            cell = Text(column.value(checkpoint), justify="right")
            if intervals and (words := interval_words(column.interval(checkpoint))):
                cell.append(f"\n{words}", style="dim")
            cells.append(cell)
        style = _STYLES[verdict_class(checkpoint)]
        name = Text(elide(checkpoint.name, max(room, 12)))
        table.add_row(name, Text(verdict_word(checkpoint), style=style), *cells)
    return table


def _fitting(
    report: ScreeningReport, every: Sequence[Column], width: int, intervals: bool
) -> tuple[list[Column], int]:
    """Choose the most important columns that fit, and the room that is left for names."""
    checkpoints = report.checkpoints
    longest = max(len("checkpoint"), *(cell_len(c.name) for c in checkpoints))
    wanted = min(longest, 24)  # enough for a folder's head and its step
    # Each column takes two blanks and a border; the first and last lack one blank.
    room = width - max(7, *(len(verdict_word(c)) for c in checkpoints)) - 5
    chosen: list[Column] = []
    for column in sorted(every, key=lambda column: column.importance):
        needed = _width(column, checkpoints, intervals) + 3
        if room - needed >= wanted:
            chosen.append(column)
            room -= needed
    return [column for column in every if column in chosen], min(longest, max(room, 12))


def _width(column: Column, checkpoints: Sequence[CheckpointScreening], intervals: bool) -> int:
    """Cells a column needs; its header may wrap between words."""
    header = max(cell_len(word) for word in column.header.split())
    below = [len(interval_words(column.interval(c))) for c in checkpoints] if intervals else [0]
    return max(header, *(cell_len(column.value(c)) for c in checkpoints), *below)


def advice_words(report: ScreeningReport) -> list[str]:
    """The recommendation and, where tau_H was calibrated, what came of it, as sentences."""
    words = []
    if (advice := report.recommendation) is not None:
        start = f"Start from {advice.name}"
        if advice.name is None:
            start = "No checkpoint is recommended"
        elif undecided_advice(report):
            start = f"Draw more; best so far is {advice.name}"
        words.append(f"{start}: {advice.reason}")
        if advice.cost and advice.highest_pass_at_1 != advice.name:
            words.append(f"Highest pass@1 would pick {advice.highest_pass_at_1}: {advice.cost}")
        words += advice.disagreements
    if report.calibration is not None:
        words.append(f"Calibration of tau_H: {report.calibration.message}")
    return words


def screening_markdown(report: ScreeningReport) -> str:
    """Write the tables in Markdown, intervals in brackets, advice, reasons and notes below."""
    lines = [*_markdown_table(report, columns(report), verdict=True), "", _caption(report) + "."]
    if words := advice_words(report):
        lines += ["", *(f"- **{_escaped(sentence)}**" for sentence in words)]
    if words := remarks(report):
        lines += ["", *(f"- {_escaped(remark)}" for remark in words)]
    return "\n".join([*lines, "", *_markdown_table(report, further_columns(report))]) + "\n"


def _markdown_table(
    report: ScreeningReport, shown: Sequence[Column], *, verdict: bool = False
) -> list[str]:
    headers = ["checkpoint", *(["verdict"] if verdict else []), *(c.header for c in shown)]
    rule = "|---|" + ("---|" if verdict else "") + "---:|" * len(shown)
    lines = [f"| {' | '.join(headers)} |", rule]
    for checkpoint in report.checkpoints:
        cells = [_escaped(checkpoint.name)] + ([verdict_word(checkpoint)] if verdict else [])
        for column in shown:
            interval = interval_words(column.interval(checkpoint))
            cells.append(column.value(checkpoint) + (f" ({interval})" if interval else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _escaped(text: str) -> str:
    """A name is never markup: no table cell ends in it, and no emphasis begins."""
    for letter in ("\\", "|", "*", "`", "<"):
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
