"""Text of users and models on its way to a reader: names, prompts, completions, messages.

It may hold anything: markup, terminal escapes, ten thousand characters, half a surrogate pair. Each
medium escapes its own markup (rich ``Text``, :func:`markdown`, Jinja2's autoescape, matplotlib with
``parse_math`` off); what no medium can show, or what would turn the text after it around, is made
visible here.
"""

import re
from collections.abc import Sequence
from itertools import takewhile

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

_LONGEST = 2000  # characters of a line; a sentence with four long names fits

# C0 as its picture (ESC is ␛); as U+FFFD: DEL, C1, lone surrogates, bidi controls, separators of
# lines, the BOM and what XML does not allow.
_LINES = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}
_LINES |= dict.fromkeys(
    [
        *range(0x7F, 0xA0),
        *range(0xD800, 0xE000),
        0x061C,
        *range(0x200E, 0x2010),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        0xFEFF,
        0xFFFE,
        0xFFFF,
    ],
    "\ufffd",
)
_LINE = _LINES | {9: "␉", 10: "␊"}


def visible(text: object) -> str:
    """``str(text)`` with a sign for every character that cannot be shown; lines stay lines."""
    return str(text).translate(_LINES)


def plain(text: object, length: int = _LONGEST) -> str:
    """One line of at most ``length`` terminal cells, with every character visible."""
    return shorten(str(text).translate(_LINE), length)


def shorten(text: str, length: int) -> str:
    """Cut out the middle of what is wider than ``length`` cells: the ends of names differ."""
    if len(text) <= length and cell_len(text) <= length:
        return text
    tail = (length - 1) // 2
    # No letter is wider than two cells and few have none: what is sliced off first is cut anyway.
    head = set_cell_size(text[: 4 * length], length - 1 - tail)
    return f"{head}…{set_cell_size(text[: -4 * length - 1 : -1], tail)[::-1]}"


def markdown(text: object, length: int = _LONGEST) -> str:
    """Escape a line for Markdown (GitHub's and CommonMark): it never begins or ends markup."""
    escaped = re.sub(r"[\\|*`<>\[\]~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", plain(text, length))
    # Only at the start of a paragraph do these begin a heading, a list or a rule.
    return re.sub(r"^(\s*)([#+=-](?=\s|$|[#=-]))|^(\s*\d+)([.)](?=\s|$))", _escape_start, escaped)


def _escape_start(match: re.Match[str]) -> str:
    before, sign = match.group(1, 2) if match[2] else match.group(3, 4)
    return f"{before}\\{sign}"


def common_beginning(names: Sequence[str]) -> str:
    """Folders that all names begin with, ``a/b/``; empty for one name."""
    if len(names) < 2:
        return ""
    folders = [name.split("/")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "".join(f"{parts[0]}/" for parts in shared)


def console_for_tables() -> Console:
    """Standard output; a file or a pipe has no width of its own, and 80 columns fold numbers."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def print_line(console: Console, words: str, style: str = "") -> None:
    """Print words as they are: never markup, no control characters, folded by the terminal only."""
    console.print(Text(plain(words), style=style), soft_wrap=True)
