"""An echelon as Markdown: the answer, then the tables, then what is missing."""

from collections.abc import Sequence

from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.findings import details
from entropyfloor.echelon.table import tables
from entropyfloor.render.text_table import Table


def echelon_markdown(comparison: EchelonComparison) -> str:
    """Write findings and every table; names are escaped."""
    lines = ["# Echelon", "", *(_escaped(words) for words in answer(comparison)), ""]
    lines += [f"- {_escaped(words)}" for words in details(comparison)]
    for table in tables(comparison):
        lines += ["", f"## {_escaped(table.title)}", "", *_rows(table), "", _escaped(table.note)]
    return "\n".join(lines).rstrip() + "\n"


def _rows(table: Table) -> list[str]:
    lines = [_line(table.headers)]
    lines.append("|" + "|".join("---" if i < table.names else "---:" for i in range(table.width)))
    lines[-1] += "|"
    return lines + [_line([cell.text for cell in row]) for row in table.rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """A name is never markup: no table cell ends in it, and no emphasis begins."""
    for letter in ("\\", "|", "*", "`", "<"):
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
