"""A table, made once and shown by rich in a terminal, as Markdown, and in a page.

Cells hold plain text of any origin; each medium escapes it. Nothing here knows what is tabulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import rich.table
from markupsafe import Markup
from rich.cells import cell_len
from rich.text import Text

from entropyfloor.render.page import environment
from entropyfloor.render.text import markdown, plain

Style = Literal["", "good", "warn", "bad", "open"]

_RICH: dict[str, str] = {
    "": "",
    "good": "green",
    "warn": "bold yellow",
    "bad": "bold red",
    "open": "cyan",
}
_TWO_LINES = 12  # more rows than this get one line each, without what stands below a cell
_NAME = 24  # cells that the first column keeps on a narrow terminal: a name's head and tail
_LONG = 120  # cells of a text in Markdown and on a page, which has the whole in a tooltip
_SHORT = 60  # cells of a text on a terminal that is not to be fitted


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    header: str  # a few words
    justify: Literal["left", "right"] = "right"  # numbers stand right, words left
    meaning: str = ""  # a sentence; the page shows it over the header
    importance: int = 0  # what a narrow terminal shows first, 0 always


@dataclass(frozen=True)
class Cell:
    """A text, what stands below it (in brackets where there is one line), and its style."""

    text: str
    small: str = ""
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """One table; its first column names the rows and is always shown."""

    title: str  # a heading
    columns: tuple[Column, ...]  # at least one
    # Of as many cells as there are columns; a string is a cell without more
    rows: tuple[tuple[Cell | str, ...], ...]
    note: str = ""  # how to read it
    key: str = ""  # stable name, an anchor on the page; empty for none
    sections: frozenset[int] = frozenset()  # rows after which a terminal draws a line

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            assert len(row) == len(self.columns), f"row {number} of {self.title}: {row}"

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, all of them of cells."""
        return [[Cell(c) if isinstance(c, str) else c for c in row] for row in self.rows]

    def to_rich(self, width: int | None = None) -> rich.table.Table:
        """Build what a rich console prints.

        Args:
            width: columns of the terminal. Where they are few, the most important columns stay,
                the first one is shortened, and the caption names what was left out. None leaves
                nothing out.

        """
        two_lines = len(self.rows) <= _TWO_LINES
        shown, room = list(range(len(self.columns))), _SHORT
        if width is not None:
            shown, room = self._fitting(width, two_lines)
        note = plain(self.note)
        if left_out := [c.header for i, c in enumerate(self.columns) if i not in shown]:
            note = f"{note.removesuffix('.')}; " if note else ""
            note += f"no room for {', '.join(map(plain, left_out))}"
        table = rich.table.Table(
            title=Text(plain(self.title)), caption=Text(note) if note else None, pad_edge=False
        )
        for i in shown:
            column = self.columns[i]
            least = min(room, self._width(i, two_lines)) if i == 0 else None
            # Left to itself, rich takes from the numbers what the names' minimum asks for.
            fixed = None if width is None or i == 0 else self._width(i, two_lines)
            table.add_column(
                Text(plain(column.header)),
                justify=column.justify,
                overflow="fold",
                min_width=least,
                width=fixed,
            )
        for number, row in enumerate(self.cells):
            table.add_row(
                *(self._rich_cell(row[i], i, room, two_lines) for i in shown),
                end_section=number in self.sections,
            )
        return table

    def _rich_cell(self, cell: Cell, column: int, room: int, two_lines: bool) -> Text:
        room = room if column == 0 else _SHORT
        text = Text(
            plain(cell.text, room),
            style=_RICH[cell.style],
            justify=self.columns[column].justify,
        )
        if cell.small and two_lines:
            text.append(f"\n{plain(cell.small, room)}", style="dim")
        return text

    def _width(self, index: int, two_lines: bool) -> int:
        """Cells a column needs; its header may wrap between words."""
        texts = [plain(word) for word in self.columns[index].header.split()]
        for row in self.cells:
            texts.append(plain(row[index].text, _SHORT))
            if two_lines:
                texts.append(plain(row[index].small, _SHORT))
        return max(map(cell_len, [*texts, ""]))

    def _fitting(self, width: int, two_lines: bool) -> tuple[list[int], int]:
        """Choose the most important columns that fit, and the room that is left for names."""
        longest = self._width(0, two_lines)
        # Each column takes two blanks and a border; the first and last lack one blank.
        room, chosen = width - 2, [0]
        for index in sorted(range(1, len(self.columns)), key=lambda i: self.columns[i].importance):
            needed = self._width(index, two_lines) + 3
            if self.columns[index].importance == 0 or room - needed >= min(longest, _NAME):
                chosen.append(index)
                room -= needed
        return sorted(chosen), min(longest, max(room, 12))

    def to_markdown(self) -> str:
        """Write the table in GitHub's Markdown, without title, note and a last line break."""
        rule = "|".join("---" if c.justify == "left" else "---:" for c in self.columns)
        rows = [
            [f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in row]
            for row in self.cells
        ]
        lines = [_line([c.header for c in self.columns]), f"|{rule}|", *map(_line, rows)]
        return "\n".join(lines)

    def to_html(self) -> Markup:
        """Write the table for a page: what is too long is cut and has the whole in a tooltip."""
        template = environment().get_template("render/table.html.j2")
        rows = self.cells
        return Markup(
            template.render(
                table=self,
                rows=rows,
                long=any(len(row[0].text) > 30 for row in rows),
                cut=lambda text: plain(text, _LONG),
                whole=lambda text: plain(text, 20_000),
            )
        )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown(cell, _LONG) for cell in cells)} |"
