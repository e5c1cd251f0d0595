r"""Find the final answer in the text of a completion or of a reference: the one place that does.

The marks, of which the last one in the text wins (docs/rewards.md shows each with an example):

    <answer>...</answer>      all that the tags enclose, on several lines too
    \boxed{...}, \fbox{...}   what the braces enclose
    Answer: ..., #### ...     the rest of the line, or what follows if nothing is left on it
    ### Answer, **Answer**    alone on a line: what follows
    the answer is ...         the rest of the sentence, read only where the text has no other mark

What stands inside tags or a box is never a mark beside them. Text up to ``</think>`` is not looked
at, and thoughts that were never closed hold no answer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_MARK = re.compile(
    r"(?P<tag><answer(?:\s[^<>]*)?>)"
    r"|(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*)"
    r"|(?P<heading>^[ \t>]*(?:\#{1,6}[ \t]+[*_]*|[*_]{1,3})(?:the[ \t]+)?(?:final[ \t]+)?answers?"
    r"[ \t]*[:*_]*[ \t]*$(?=\s*\S))"
    r"|(?P<line>(?<![A-Za-z])answers?(?:[ \t]*[*_`]*[ \t]*[:：][*_]*|\*\*[ \t]+(?=[^\sA-Za-z]))"
    r"|(?<!\#)\#{4}(?!\#))",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(
    r"(?<![A-Za-z])answers?(?![A-Za-z])[^.:?!\n]{0,60}?(?<![A-Za-z])(?:is|are)(?![A-Za-z])[ \t]*:?"
    r"(?!\s*(?:not|correct|incorrect|right|wrong|that|clear|obvious|found|given|obtained)\b)",
    re.IGNORECASE,
)
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|and|or|\\text\{ ?(?:and|or) ?\})[\s$]*")
_BLOCKS = {"$$": "$$", "\\[": "\\]", "```": "```", "~~~": "~~~"}
# What may enclose a whole answer without being part of it.
_WRAPS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\*\*((?:(?!\*\*).)+)\*\*",
        r"\*([^*]+)\*",
        r"`([^`]+)`",
        r"```[^\n`]*\n((?:(?!```).)+)```",
        r"\$\$([^$]+)\$\$",
        r"\$([^$]+)\$",
        r"\\\(((?:(?!\\\)).)+)\\\)",
        r"\\\[((?:(?!\\\]).)+)\\\]",
        r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}",
    )
]


def completion_text(completion: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Take the text of a completion: itself, or the content of its last message.

    Content in parts is the text of its text parts; no content (a message of tool calls) is "".
    """
    if completion is None or isinstance(completion, str):
        return completion or ""
    content = completion[-1].get("content") if completion else None
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        return "".join(
            part if isinstance(part, str) else str(part.get("text") or "") for part in content
        )
    return str(content)


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; nothing where thoughts were begun and never closed."""
    rest = text.rpartition("</think>")[2]
    return "" if rest.lstrip().startswith("<think>") else rest


class _Marked(NamedTuple):
    content: str
    rest: str = ""  # all that follows a mark of a line, where an answer may go on


def marked_answer(text: str) -> str | None:
    """Find the answer that a text marks, see the module's docstring; None if it marks none.

    Emphasis, ``$...$``, a code span and a full stop around it are taken off.
    """
    return _plain_answer(after_thinking(text))


def final_answer(text: str) -> str:
    """Find :func:`marked_answer`, else the last line that is not blank, without its emphasis."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    return without_emphasis(after_thinking(text).strip().rpartition("\n")[2])


def answer_readings(text: str) -> list[str]:
    """What a verifier of free text may be asked: the marked answer as it stands, then plain.

    Without a mark it is the whole text; "the answer is ..." is read beside it.
    """
    text = after_thinking(text)
    marked = _last_mark(text)
    readings = [text] if marked is None else [marked.content, marked.rest]
    readings.append(_plain_answer(text) or "")
    stripped = [reading.strip() for reading in readings]
    return list(dict.fromkeys(reading for reading in stripped if reading)) or [""]


def without_emphasis(answer: str) -> str:
    """Take off what encloses a whole answer: white space, emphasis, math signs, a full stop."""
    while True:
        before = answer
        answer = answer.strip()
        for wrap in _WRAPS:
            if match := wrap.fullmatch(answer):
                answer = match[1]
        for sign in ("**", "*"):  # **Answer: 42** leaves one of the pair
            if answer.count(sign) == 1 and answer != sign:
                answer = answer.removesuffix(sign).removeprefix(sign)
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        if answer == before:
            return answer


def _plain_answer(text: str) -> str | None:
    # A loop and no recursion: a model that loops writes one tag inside the other, a thousand deep.
    answer = None
    while (marked := _last_mark(text) or _last_sentence(text)) is not None:
        answer = text = marked.content
    return None if answer is None else without_emphasis(answer)


def _last_mark(text: str) -> _Marked | None:
    last: _Marked | None = None
    line: int | None = None  # where the last mark of a line ended, if it is the last of all
    box: tuple[int, str] | None = None  # where the last box ended, and what was in it
    position = 0
    while match := _MARK.search(text, position):
        position, line = match.end(), None
        if match["tag"]:
            end = re.compile(r"</answer\s*>", re.IGNORECASE).search(text, position)
            last = _Marked(text[position : end.start() if end else len(text)].strip())
            position = end.end() if end else len(text)
        elif match["box"]:
            content, position = _in_box(text, position)
            if box is not None and _BETWEEN_BOXES.fullmatch(text, box[0], match.start()):
                content = f"{box[1]}, {content}"  # \boxed{1} and \boxed{2} are one answer
            last, box = _Marked(content), (position, content)
        else:
            line = position
    return last if line is None else _Marked(_line_after(text[line:]), text[line:])


def _last_sentence(text: str) -> _Marked | None:
    *_, last = (None, *_SENTENCE.finditer(text))
    if last is None:
        return None
    return _Marked(re.split(r"\.\s", _line_after(text[last.end() :]), maxsplit=1)[0])


def _line_after(text: str) -> str:
    """The rest of the line, else the next that has something; a block of several as a whole."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        line = line.strip()
        if not line.strip("*_ "):
            continue
        for opening, closing in _BLOCKS.items():
            fence = opening in {"```", "~~~"}
            if line.startswith(opening) if fence else line == opening:
                body = [each.rstrip() for each in lines[number + 1 :]]
                ends = (i for i, each in enumerate(body) if each.strip().startswith(closing))
                return "\n".join(body[: next(ends, len(body))]).strip("\n")
        return line
    return ""


def _in_box(text: str, start: int) -> tuple[str, int]:
    """Content of a box and where it ends: in braces, to the end if never closed, or bare."""
    if not text.startswith("{", start):
        bare = re.compile(r"[^\s$]*").match(text, start)
        assert bare is not None
        return bare[0], bare.end()
    depth, end = 0, text.rfind("}") + 1  # without one in sight nothing is looked through
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()].strip(), brace.end()
    return text[start + 1 :].strip(), len(text)
