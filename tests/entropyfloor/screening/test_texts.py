import math
import random
from collections import Counter

import numpy as np
import pytest
from test_measure import measured

from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.screening.texts import (
    NOISE_NATS,
    kind_of_degenerate,
    repetition,
    self_bleu,
    unique_fraction,
)

WORKING = "Start at 5. Add 9 gives 14. Add 7 gives 21.\nAnswer: 21"
LIST = "1. wash\n2. dry\n3. fold\n4. iron\n5. wear\n6. tear\n7. mend\n8. wash again"
CODE = "for i in range(10):\n    for j in range(10):\n        print(i, j)\n\n\nmain()\n"


def kind(text, nats=0.5, ids=None):
    return kind_of_degenerate(text, ids or [ord(letter) for letter in text], nats)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WORKING, None),
        (LIST, None),
        (CODE, None),
        ("", None),
        ("42", None),
        ("The answer is 1111111.", None),
        ("| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |", None),
        (WORKING + "\n" * 4, None),
        ("1+1=2, " * 9, "loop"),
        (WORKING + " Then again." * 12, "loop"),
        (WORKING + " Then again." * 3, None),  # three rounds, but not half of it
        ("a" * 16, "loop"),
        ("a" * 15, None),
        ((WORKING + "\n") * 3, "loop"),
        ((WORKING + "\n") * 2, None),
        ("\n \n\t" * 9, "loop"),
        ("Answer:" + " \n\t\n\n" * 3 + "\t \n \n\t\t", "whitespace"),
        ("x" + " \n\t" * 3 + WORKING, None),
        ("So the value 值 is four, 然后 we add, и затем 加上 two, 最后 done.", "script switch"),
        ("Water is 水 in Chinese.", None),
        ("答案是 Python 的 list 和 dict 以及 set，还有 tuple 和 frozenset。", None),
        ("Пусть x = 2, тогда y = 3.", None),
        ("α + β = γ, so Σ over α is β and Δ is small", None),
        ("日本語の文章はカタカナとひらがなと漢字でできています。", None),
        ("<think>\n\n</think>\n42", "empty thought"),
        ("<think>two and two</think>\n4", None),
        ("<thinking></thinking>", "empty thought"),
    ],
)
def test_kinds(text, expected):
    assert kind(text) == expected


def test_noise_is_told_by_its_entropy():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 49_152, 40).tolist()
    assert kind("Shinimoffet ThrifTarget", 7.0, ids) == "noise"
    assert kind("Shinimoffet ThrifTarget", NOISE_NATS - 0.01, ids) is None
    assert kind("", 7.0, [7] * 40) == "loop"


def test_a_loop_of_a_long_period_is_found_at_the_end_and_in_the_middle():
    rng = np.random.default_rng(1)
    block, before = rng.integers(0, 1000, 70).tolist(), rng.integers(0, 1000, 100).tolist()
    assert kind("", 1.0, before + 3 * block + block[:11]) == "loop"
    assert kind("", 1.0, before[:50] + 4 * block + before[50:]) == "loop"
    assert kind("", 1.0, before + 2 * block) is None


def test_shares_and_the_junk_that_does_not_pass():
    texts = ["1+1=2, " * 9, "1+1=2, " * 9, WORKING, "<think></think> 4"]
    rollouts = [
        Rollout(p, s, tuple(map(ord, text)), np.full(len(text), 0.5, np.float32), text, False)
        for p in range(2)
        for s, text in enumerate(texts)
    ]
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    found = measured(rollouts, rewards)
    assert found.degenerate_text == {"loop": 0.5, "empty thought": 0.25}
    assert found.junk_fraction == pytest.approx(3 / 8)  # one loop passes
    assert measured(rollouts, None).junk_fraction == 0.5
    assert found.verdict != "junk"


def test_loops_are_those_that_a_search_over_all_periods_finds():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(300):
        count = int(rng.integers(16, 60))
        ids = rng.integers(0, 3, count)
        if rng.random() < 0.7:
            period, start = int(rng.integers(1, 8)), int(rng.integers(0, count // 2 + 1))
            for i in range(start + period, count):
                ids[i] = ids[i - period]
        longest = 0
        for period in range(1, count // 3 + 1):
            run = 0
            for i in range(period, count):
                run = run + 1 if ids[i] == ids[i - period] else 0
                if run + period >= 3 * period:
                    longest = max(longest, run + period)
        expected = longest >= max(16, count // 2)
        assert (kind_of_degenerate("", ids.tolist(), 0.5) == "loop") == expected
        seen.add(expected)
    assert seen == {True, False}


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
