"""A table as text, for Markdown, the terminal and the page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A number and what stands below it or, in one line, in brackets."""

    main: str
    small: str = ""

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.main} ({self.small})" if self.small else self.main


@dataclass(frozen=True)
class Table:
    """One table; the first ``names`` columns are words and stand left.

    Attributes:
        key: stable name, an anchor on the page.
        title: heading.
        headers: one per column.
        rows: cells.
        note: a sentence on how to read it.
        names: columns of words.

    """

    key: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str
    names: int = 1

    @property
    def width(self) -> int:
        """Columns."""
        return len(self.headers)
