"""Find the final answer in the text of a completion."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# A marker, and what it marks: the rest of its line, or what the braces or tags enclose.
_LINE_MARKER = re.compile(r"####|answer\s*:", re.IGNORECASE)
_BOXED = "\\boxed{"


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Take the text of a completion: itself, or the content of its last message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def marked_answer(text: str) -> str | None:
    r"""Find the answer that a completion marks, stripped of whitespace; None if it marks none.

    Markers are ``####``, ``Answer:`` (any case) and ``\boxed{...}``; the one that comes last in
    the text wins. The first two mark the rest of their line, or the next line that is not blank if
    nothing follows on theirs; ``\boxed`` marks what its braces enclose.
    """
    found: tuple[int, str] | None = None
    for match in _LINE_MARKER.finditer(text):
        lines = [line.strip() for line in text[match.end() :].split("\n")]
        found = (match.start(), next((line for line in lines if line), ""))
    start = text.rfind(_BOXED)
    if start >= 0 and (found is None or start > found[0]):
        found = (start, _enclosed(text, start + len(_BOXED)))
    elif found is not None and found[1].startswith(_BOXED):
        found = (found[0], _enclosed(found[1], len(_BOXED)))
    return None if found is None else found[1]


def _enclosed(text: str, start: int) -> str:
    """Text from ``start`` to the brace that closes the one before it (to the end if none does)."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return text[start:].strip()


def final_answer(text: str) -> str:
    """Find :func:`marked_answer`, else the last line that is not blank, stripped."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    return text.strip().rpartition("\n")[2].strip()
