r"""The reward ``math``: 1.0 where math-verify finds answer and reference to be equal, else 0.0.

The reference is column ``solution``, as in trl, else ``answer``: raw LaTeX, LaTeX between math
signs, or a text that marks it (``\boxed{...}``, GSM8K's ``#### 42``, see ``rollouts.answers``). It
is parsed as a whole; one that cannot be is None, never the number that it happens to hold, and the
reward does not apply. A few plain words (``Monday``, ``\text{even}``) are compared as text.
"""

import functools
import importlib.util
import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from entropyfloor.rollouts.answers import (
    after_thinking,
    completion_text,
    marked_answer,
    without_emphasis,
)

NEEDED = (
    "the reward math needs a column 'solution' or 'answer' in the prompt set; add it or use "
    "another reward"
)
_LONGEST_ANSWER = 1000  # characters; more is no answer, and would take sympy minutes
_PARSE_SECONDS, _VERIFY_SECONDS = 10, 5  # as trl's accuracy_reward

_NUMBER = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '’-][^\W\d_]+){0,4}")
_PROSE = re.compile(r"(?<![\\\w{])[^\W\d_]{3,}")  # words that are neither commands nor their text
_MOST_PROSE = 4
_MATH = re.compile(
    r"(?<!\\)\$\$?(?P<dollars>(?:\\.|[^$\\])+)\$\$?|\\\((?P<inline>.+?)\\\)|\\\[(?P<display>.+?)\\\]",
    re.DOTALL,
)
_CONNECTIVES = re.compile(r"[\s,;.]*(?:(?:and|or)[\s,;.]*)?")
_COUNTED = re.compile(  # 42 apples; "3 million" and "2 sin x" are not three and two
    r"(-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s+"
    r"(?!(?:hundred|thousand|million|billion|trillion|dozen|sin|cos|tan|log|exp|sqrt)\b)"
    r"[A-Za-z]{3,}(?: [A-Za-z]+)*"
)
# Spellings that math-verify's grammar reads otherwise or not at all.
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"−", "-"),
        (r"×", r"\\times "),
        (r"·", r"\\cdot "),
        (r"∞", r"\\infty "),
        (r"π|(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"≤", r"\\leq "),
        (r"≥", r"\\geq "),
        (r"√\s*(\w+)", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"(?<=\d)(?:\\[,!;: ]|~)+(?=\d{3})", ""),
        (r"(?<=\d)\s*(?:percent|per cent)\b", r"\\%"),
        (r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)$", r"\1 \\times 10^{\2}"),
        (r"\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s))\s*", ", "),
        (r"\*\*", "^"),
    )
]


def math_accuracy(
    completions: Sequence[Any],
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    **_: Any,
) -> list[float | None]:
    """Score 1.0 where the marked answer equals the reference, 0.0 where not or none is marked.

    None where no reference can be read: neither ``solution``'s nor, if that is empty or cannot be
    read, ``answer``'s.
    """
    if solution is None and answer is None:
        raise ValueError(NEEDED)
    check_math_verify()
    scores: list[float | None] = []
    for index, completion in enumerate(completions):
        columns = (None if column is None else column[index] for column in (solution, answer))
        reference = math_reference(*columns)
        if reference is None:
            scores.append(None)
            continue
        marked = marked_answer(completion_text(completion))
        scores.append(float(marked is not None and _equal(reference, marked)))
    return scores


def math_reference(solution: Any, answer: Any = None) -> str | None:
    """The reference's answer: of the first of both that can be read, or None."""
    for value in (solution, answer):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int | float):
            text = _answer_of_reference(str(value))
            if text is not None:
                return text
    return None


def check_math_verify() -> None:
    """Raise ValueError unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            "the reward math needs math-verify, which is not installed; "
            "pip install 'entropyfloor[math]', or use exact_match"
        )


@functools.lru_cache(maxsize=1 << 16)
def _answer_of_reference(text: str) -> str | None:
    marked = marked_answer(text)
    answer = without_emphasis(after_thinking(text)) if marked is None else marked
    readable = _NUMBER.fullmatch(answer) or _words(answer) or _parsed(answer)
    return answer if readable else None


@functools.lru_cache(maxsize=1 << 16)
def _equal(reference: str, answer: str) -> bool:
    """Whether an answer equals a reference that can be read."""
    if "".join(reference.split()) == "".join(answer.split()):
        return True
    words = _words(reference)
    if words is not None and words == _words(answer):
        return True
    if words is not None and len(words) > 3:  # `xy` may be a product, `Monday` is none
        return False
    gold, target = _parsed(reference), _parsed(answer)
    if not gold or not target:
        return False
    from math_verify import verify

    return bool(verify(list(gold), list(target), timeout_seconds=_limit(_VERIFY_SECONDS)))


def _words(answer: str) -> str | None:
    """A few plain words, in one case; None for anything else."""
    choice = re.fullmatch(r"\(([A-Za-z])\)", answer)
    if choice:
        return choice[1].casefold()
    return answer.casefold() if _WORDS.fullmatch(answer) else None


@functools.lru_cache(maxsize=1 << 12)
def _parsed(answer: str) -> tuple[Any, ...]:
    """Sympy expressions of an answer; none where it cannot be read as a whole."""
    if not answer.strip() or len(answer) > _LONGEST_ANSWER:
        return ()
    from math_verify import LatexExtractionConfig, parse

    whole = _whole_latex(answer)
    if whole is None:
        return ()
    latex = LatexExtractionConfig(boxed_match_priority=0)
    answers = parse(
        f"\\boxed{{{whole}}}",
        extraction_config=[latex],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=_limit(_PARSE_SECONDS),
    )
    return tuple(answers)


def _whole_latex(answer: str) -> str | None:
    """An answer as one piece of LaTeX; None where prose leaves open which piece of it is meant."""
    pieces = [next(filter(None, match.groups())).strip() for match in _MATH.finditer(answer)]
    between = [part for part in _MATH.sub("\0", answer).split("\0") if part.strip()]
    if pieces and all(_CONNECTIVES.fullmatch(part) for part in between):
        answer = ", ".join(pieces)
    elif pieces and _PROSE.search(" ".join(between)):
        if len(pieces) > 1:
            return None
        answer = pieces[0]
    elif len(_PROSE.findall(answer)) > _MOST_PROSE:
        return None
    if counted := _COUNTED.fullmatch(answer):
        answer = counted[1]
    for pattern, replacement in _SPELLINGS:
        answer = pattern.sub(replacement, answer)
    return answer


def _limit(seconds: int) -> int | None:
    """Math-verify's limit is an alarm, which only the main thread can set."""
    if threading.current_thread() is threading.main_thread():
        return seconds
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns that there is no limit
    return None
