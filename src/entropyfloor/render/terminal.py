"""Standard output of the verbs: a console wide enough for tables, and lines of plain text."""

from rich.console import Console
from rich.text import Text

from entropyfloor.render.text import plain


def console_for_tables() -> Console:
    """Standard output; a file or a pipe has no width of its own, and 80 columns fold numbers."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def print_line(console: Console, words: str, style: str = "") -> None:
    """Print words as they are: never markup, no control characters, folded by the terminal only."""
    console.print(Text(plain(words), style=style), soft_wrap=True)
