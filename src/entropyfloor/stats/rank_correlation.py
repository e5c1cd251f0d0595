"""Whether a measure orders checkpoints as their outcome after RL does."""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy import stats

_EXACT_UP_TO = 8  # 40,320 permutations
_PERMUTATIONS = 20_000


class RankTest(NamedTuple):
    """Two-sided p-value of no association, and how it was found: ``exact`` or ``permutation``."""

    p_value: float
    method: str


def spearman(measure: Sequence[float], outcome: Sequence[float]) -> float:
    """Spearman rank correlation in [-1, 1]; ties share their mean rank.

    Raises:
        ValueError: different lengths, fewer than three pairs, or a side that does not vary.

    """
    _check(measure, outcome)
    return float(stats.spearmanr(measure, outcome).statistic)


def spearman_test(measure: Sequence[float], outcome: Sequence[float], *, seed: int = 0) -> RankTest:
    """Test Spearman's correlation by permuting outcomes.

    All permutations up to eight pairs, else 20,000 random ones, which count the observed one too,
    so that the p-value is never 0.

    Raises:
        ValueError: as :func:`spearman`.

    """
    _check(measure, outcome)
    left = stats.rankdata(measure) - (len(measure) + 1) / 2
    right = stats.rankdata(outcome) - (len(outcome) + 1) / 2
    observed = abs(float(left @ right)) - 1e-9
    if len(measure) <= _EXACT_UP_TO:
        extreme = sum(
            abs(sum(a * b for a, b in zip(left, order, strict=True))) >= observed
            for order in permutations(right.tolist())
        )
        return RankTest(extreme / math.factorial(len(measure)), "exact")
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(right, (_PERMUTATIONS, 1)), axis=1)
    extreme = int(np.sum(np.abs((shuffled * left).sum(axis=1)) >= observed))
    return RankTest((extreme + 1) / (_PERMUTATIONS + 1), "permutation")


def _check(measure: Sequence[float], outcome: Sequence[float]) -> None:
    if len(measure) != len(outcome):
        raise ValueError(
            f"one outcome per checkpoint is needed; got {len(measure)} measures and "
            f"{len(outcome)} outcomes"
        )
    if len(measure) < 3:
        raise ValueError(f"a rank correlation needs at least three checkpoints; got {len(measure)}")
    if len(set(measure)) < 2 or len(set(outcome)) < 2:
        raise ValueError("a rank correlation needs measures and outcomes that vary")
