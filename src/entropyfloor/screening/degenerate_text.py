"""Which rollouts are degenerate text, and of what kind: entropy that is junk is not exploration.

    loop            one block of tokens three times or more in a row, over half of the rollout and
                    16 tokens or more
    whitespace      50 blanks or line breaks in a row, or more of them than anything else
    script switch   three or more runs of letters of a script that has less than a fifth of the
                    letters (Chinese words in an English answer); Latin and Greek may be anywhere
    noise           mean token entropy of 6 nats or more: 400 equally likely tokens at every step
    empty thought   ``<think></think>`` with nothing inside

The numbers are our choice. On the demo's model (49,152 tokens) the base writes at 2.7 nats, and a
model trained with label smoothing of 0.1, whose rollouts are tokens from anywhere, at 6.9 to 7.7.
A model that is trained not to think writes empty thoughts on purpose: they are counted and shown,
and are no junk. Nor is a rollout that passes.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from entropyfloor.stats.diversity import repetition

LOOP, WHITESPACE, SWITCH, NOISE, EMPTY = KINDS = (
    *("loop", "whitespace", "script switch", "noise", "empty thought"),
)
JUNK = KINDS[:4]
NOISE_NATS = 6.0
_FEWEST_LOOPED, _FEWEST_ROUNDS = 16, 3
_WHITESPACE_RUN, _WHITESPACE_LEAST = 50, 16
_RARE_SHARE, _RARE_RUNS = 0.2, 3
_EMPTY = re.compile(r"<(think|thinking|thought)>\s*</\1>")
# Japanese is written in three scripts that are one here.
_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "CJK": "CJK"} | {
    name: name
    for name in (
        *("ARABIC", "ARMENIAN", "BENGALI", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN"),
        *("GUJARATI", "GURMUKHI", "HANGUL", "HEBREW", "KANNADA", "KHMER", "LAO", "MALAYALAM"),
        *("MONGOLIAN", "MYANMAR", "SINHALA", "TAMIL", "TELUGU", "THAI", "TIBETAN"),
    )
}


def kind_of_degenerate(text: str, token_ids: Sequence[int], mean_entropy_nats: float) -> str | None:
    """The first of `KINDS` that a rollout is; None for text that is not degenerate.

    Args:
        text: without special tokens.
        token_ids: the end-of-sequence token included.
        mean_entropy_nats: over its tokens, at temperature 1.

    """
    if _loops(token_ids):
        return LOOP
    if _is_whitespace(text):
        return WHITESPACE
    if not text.isascii() and _switches_script(text):
        return SWITCH
    if mean_entropy_nats >= NOISE_NATS:
        return NOISE
    return EMPTY if _EMPTY.search(text) else None


def _loops(token_ids: Sequence[int]) -> bool:
    count = len(token_ids)
    least = max(_FEWEST_LOOPED, count // 2)
    # A loop of half the rollout repeats its 4-grams; most rollouts are let go here.
    if count < _FEWEST_LOOPED or repetition(token_ids) < 0.2:
        return False
    ids = np.asarray(token_ids)
    # What is half of the rollout holds one of these places, and its token again a period away.
    periods: set[int] = set()
    for place in (count // 2 - 1, (count + 1) // 2):
        periods.update(np.abs(np.flatnonzero(ids == ids[place]) - place).tolist())
    for period in sorted(p for p in periods if 0 < p <= count // _FEWEST_ROUNDS):
        # A run of r tokens that equal those one period before is a loop of r + period tokens.
        different = np.flatnonzero(np.concatenate(([1], ids[period:] != ids[:-period], [1])))
        run = int(np.diff(different).max()) - 1
        if run + period >= max(least, _FEWEST_ROUNDS * period):
            return True
    return False


def _is_whitespace(text: str) -> bool:
    longest = max((len(run) for run in re.findall(r"\s+", text)), default=0)
    blanks = sum(map(str.isspace, text))
    return longest >= _WHITESPACE_RUN or (
        longest >= _WHITESPACE_LEAST and blanks > len(text) - blanks
    )


def _switches_script(text: str) -> bool:
    scripts = [script for letter in text if letter.isalpha() for script in (_script(letter),)]
    shares = Counter(scripts)
    runs = Counter(script for script, _ in groupby(scripts))
    return any(
        runs[script] >= _RARE_RUNS and count < _RARE_SHARE * len(scripts)
        for script, count in shares.items()
        if script
    )


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """A script of the list; empty for all others, which are at home anywhere."""
    return _SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], "")
