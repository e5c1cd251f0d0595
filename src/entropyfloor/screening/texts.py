"""What rollouts read like: how alike those of a prompt are, and which are degenerate text.

Alike.

    self-BLEU = mean_i BLEU(rollout i, references: the others of its prompt)     in [0, 1]; 1: alike
    BLEU(c, R) = BP · exp( mean_{n=1..4} log p_n )
    p_n  = clipped n-gram matches / n-grams of c;  for n > 1 both plus 1 (smoothing)
    BP   = min(1, exp(1 - r / |c|))       r: the reference length closest to |c|, shorter on a tie

Sources: self-BLEU is Texygen's (arXiv 1802.01886); BLEU is Papineni et al. (ACL 2002), clipped by
the greatest count in any one reference; adding one for n > 1 is Lin and Och (COLING 2004), without
which one missing 4-gram makes the product zero. Computed on token ids, so that nothing depends on
how text is split into words. Departure: orders that the rollout is too short for are left out of
the mean, so that two equal rollouts of two tokens score 1. Clipping needs, for every rollout, the
greatest count of an n-gram among the *others*: the two greatest counts over all rollouts of the
prompt give it, so the cost is linear in their tokens.

Degenerate: entropy that is junk is not exploration.

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

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

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


MAX_ORDER = 4
_Gram = tuple[Hashable, ...]


def unique_fraction(completions: Sequence[Hashable]) -> float:
    """Distinct completions over all completions of one prompt, in (0, 1].

    It falls as more are drawn: compare values for the same number of completions only.
    """
    if not completions:
        raise ValueError("the unique fraction of no completions is not defined")
    return len(set(completions)) / len(completions)


def self_bleu(rollouts: Sequence[Sequence[Hashable]]) -> float:
    """Mean BLEU-4 of each rollout of one prompt against its others, in [0, 1]; 1 is all alike.

    It rises as more are drawn: compare values for the same number of rollouts only.

    Args:
        rollouts: token ids (or any tokens) of two or more rollouts, none of them empty.

    """
    if len(rollouts) < 2:
        raise ValueError(f"self-BLEU compares rollouts with each other; got {len(rollouts)}")
    if not all(rollouts):
        raise ValueError("self-BLEU of a rollout without tokens is not defined")
    grams = [[_ngrams(rollout, order) for rollout in rollouts] for order in range(1, MAX_ORDER + 1)]
    greatest = [_two_greatest(counts) for counts in grams]
    lengths = [len(rollout) for rollout in rollouts]
    scores = []
    for index, length in enumerate(lengths):
        logs = []
        for order in range(1, min(MAX_ORDER, length) + 1):
            counts = grams[order - 1][index]
            top = greatest[order - 1]
            matches = sum(min(count, _among_others(top[g], count)) for g, count in counts.items())
            smooth = 0 if order == 1 else 1
            precision = (matches + smooth) / (length - order + 1 + smooth)
            logs.append(math.log(precision) if precision > 0 else -math.inf)
        others = lengths[:index] + lengths[index + 1 :]
        closest = min(others, key=lambda other: (abs(other - length), other))
        brevity = min(0.0, 1.0 - closest / length)
        scores.append(math.exp(brevity + sum(logs) / len(logs)))
    return sum(scores) / len(scores)


def repetition(tokens: Sequence[Hashable], *, order: int = MAX_ORDER) -> float:
    """Share of a rollout's n-grams that it already had: ``1 - distinct / all``, in [0, 1).

    0 for a rollout shorter than ``order``. Endless newlines give almost 1.
    """
    total = len(tokens) - order + 1
    return 0.0 if total < 1 else 1.0 - len(_ngrams(tokens, order)) / total


def _ngrams(tokens: Sequence[Hashable], order: int) -> Counter[_Gram]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _two_greatest(counts: Sequence[Counter[_Gram]]) -> dict[_Gram, tuple[int, int]]:
    """The two greatest counts of each n-gram over rollouts; 0 where only one rollout has it."""
    top: dict[_Gram, tuple[int, int]] = {}
    for counter in counts:
        for gram, count in counter.items():
            first, second = top.get(gram, (0, 0))
            top[gram] = (count, first) if count > first else (first, max(second, count))
    return top


def _among_others(top: tuple[int, int], count: int) -> int:
    """The greatest count among the others: the second greatest for whoever holds the first."""
    return top[1] if count == top[0] else top[0]
