"""How different the rollouts of one prompt are from each other, and from themselves.

    self-BLEU = mean_i BLEU(rollout i, references: the others of its prompt)     in [0, 1]; 1: alike
    BLEU(c, R) = BP · exp( mean_{n=1..4} log p_n )
    p_n  = clipped n-gram matches / n-grams of c;  for n > 1 both plus 1 (smoothing)
    BP   = min(1, exp(1 - r / |c|))       r: the reference length closest to |c|, shorter on a tie

Sources: self-BLEU is Texygen's (arXiv 1802.01886); BLEU is Papineni et al. (ACL 2002), clipped by
the greatest count in any one reference; adding one for n > 1 is Lin and Och (COLING 2004), without
which one missing 4-gram makes the product zero. Computed on token ids, so that nothing depends on
how text is split into words. Departure: orders that the rollout is too short for are left out of
the mean, so that two equal rollouts of two tokens score 1.

Clipping needs, for every rollout, the greatest count of an n-gram among the *others*: the two
greatest counts over all rollouts of the prompt give it, so the cost is linear in their tokens.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

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
