"""Paired comparisons as tables and Markdown."""

from collections.abc import Sequence

from entropyfloor.render.table import Cell, Column, Style, Table
from entropyfloor.render.text import markdown
from entropyfloor.screening.paired import Difference, PairedComparison, SolvedByOne
from entropyfloor.stats.intervals import Interval

_NAMES = {"entropy_nats": "entropy (nats)", "degenerate_fraction": "degenerate groups"}
_LISTED = 100  # prompts of a list that are shown
_LESS_IS_BETTER = ("degenerate_fraction",)


def paired_table(pair: PairedComparison) -> Table:
    """A row per metric: both values, and the difference with its interval."""
    columns = (
        Column("metric", "left"),
        Column("difference", meaning="second minus first; below it the 95 % interval"),
        Column(pair.first),
        Column(pair.second),
    )
    return Table(
        f"{pair.first} → {pair.second}",
        columns,
        tuple(map(_row, pair.differences)),
        f"{pair.num_prompts} prompts of both; intervals are 95 %, resampling the prompts of both "
        "together",
    )


def solved_table(pair: PairedComparison, rows: Sequence[SolvedByOne], title: str) -> Table:
    """The prompts that one of the two solves."""
    columns = (
        Column("prompt", "left"),
        Column("text", "left"),
        Column(f"passed, {pair.first}"),
        Column(f"passed, {pair.second}"),
    )
    cells = (
        (f"{r.prompt_index}", r.prompt, f"{r.first_passed}", f"{r.second_passed}")
        for r in rows[:_LISTED]
    )
    left = len(rows) - _LISTED
    return Table(title, columns, tuple(cells), f"{left} more are in the JSON" if left > 0 else "")


def paired_markdown(pairs: Sequence[PairedComparison]) -> str:
    """Every comparison: its sentences, its table, the prompts lost and gained."""
    parts = []
    for pair in pairs:
        parts += [f"## {markdown(f'{pair.first} → {pair.second}')}", markdown(pair.message)]
        parts += [f"- {markdown(note)}" for note in pair.notes]
        parts.append(paired_table(pair).to_markdown())
        for title, rows in lost_and_gained(pair):
            parts += [f"### {title}", solved_table(pair, rows, title).to_markdown()]
    return "\n\n".join(parts) + "\n"


def lost_and_gained(pair: PairedComparison) -> list[tuple[str, tuple[SolvedByOne, ...]]]:
    """What there is of the two lists, each with a title."""
    if pair.coverage is None:
        return []
    lists = [("Lost", pair.coverage.lost), ("Gained", pair.coverage.gained)]
    return [(f"{word}: {len(rows)} prompts", rows) for word, rows in lists if rows]


def _row(row: Difference) -> tuple[Cell | str, ...]:
    name = _NAMES.get(row.metric, row.metric.replace("pass_at_", "pass@"))
    return (
        name,
        Cell(f"{row.difference:+.3f}", _ends(row.interval), _style(row)),
        f"{row.first:.3f}",
        f"{row.second:.3f}",
    )


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:+.3f} to {interval.high:+.3f}"


def _style(row: Difference) -> Style:
    """Good or bad where the interval leaves no doubt; of entropy neither is."""
    if row.interval is None or row.interval.low <= 0.0 <= row.interval.high:
        return ""
    if row.metric == "entropy_nats":
        return "open"
    better = (row.difference > 0) != (row.metric in _LESS_IS_BETTER)
    return "good" if better else "bad"
