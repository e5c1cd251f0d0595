import math
import random
from collections import Counter

import pytest

from entropyfloor.stats.diversity import repetition, self_bleu, unique_fraction


def test_unique_fraction():
    assert unique_fraction(["a", "b", "a", "a"]) == 0.5
    assert unique_fraction(["a"]) == 1.0
    with pytest.raises(ValueError, match="no completions"):
        unique_fraction([])


def _naive_bleu(candidate, references):
    """BLEU-4 written from the papers, reference by reference."""
    logs = []
    for n in range(1, min(4, len(candidate)) + 1):
        own = Counter(tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1))
        best = Counter()
        for reference in references:
            best |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matches, total = sum((own & best).values()), sum(own.values())
        add = n > 1
        if matches + add == 0:
            return 0.0
        logs.append(math.log((matches + add) / (total + add)))
    r = min((abs(len(x) - len(candidate)), len(x)) for x in references)[1]
    brevity = 1.0 if len(candidate) >= r else math.exp(1 - r / len(candidate))
    return brevity * math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("seed", range(20))
def test_self_bleu_equals_the_naive_form(seed):
    rng = random.Random(seed)
    rollouts = [
        [rng.randrange(4) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(2, 6))
    ]
    rollouts.append(list(rollouts[0]))  # ties between the two greatest counts
    expected = sum(
        _naive_bleu(rollout, rollouts[:i] + rollouts[i + 1 :]) for i, rollout in enumerate(rollouts)
    ) / len(rollouts)
    assert self_bleu(rollouts) == pytest.approx(expected, abs=1e-12)


def test_self_bleu_limits():
    assert self_bleu(["ab", "ab"]) == self_bleu(["abcdefg"] * 5) == 1.0
    assert self_bleu(["abcd", "efgh"]) == 0.0
    assert 0.0 < self_bleu(["abcde", "abcdx"]) < 1.0
    with pytest.raises(ValueError, match="got 1"):
        self_bleu(["abc"])
    with pytest.raises(ValueError, match="without tokens"):
        self_bleu(["abc", ""])


def test_repetition():
    assert repetition([1, 2, 3]) == repetition(range(30)) == 0.0
    assert repetition([7] * 103) == pytest.approx(0.99)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
