"""Groups of a group-relative RL step, and when all rewards of one group agree.

A group is ``g`` rollouts of one prompt with binary rewards and pass rate ``p``. If all rewards
agree the group is degenerate: its advantages are zero and it teaches nothing.

    P(all wrong)              = (1-p)^g
    P(all right)              = p^g
    P(degenerate)             = p^g + (1-p)^g
    within-group variance     = p (1-p) (g-1) / g        expected, in the population form
    p*(g)                     = 1 - 2^(-1/g)             from (1-p)^g = 1/2

Source: rank-inversion paper, arXiv 2606.18487, Proposition 1 and the majority-degeneration
threshold.

The pass rate is not observed: ``c`` of ``n`` rollouts passed, and plugging ``c/n`` into a power is
biased. A group is ``g`` of the ``n`` rollouts, so averaging over all ``C(n, g)`` subsets gives the
unbiased estimates ``C(n-c, g) / C(n, g)`` (all wrong) and ``C(c, g) / C(n, g)`` (all right), the
same idea as for pass@k, the probability that at least one of ``k`` rollouts passes, whose unbiased
estimate (arXiv 2107.03374, equation 1) is ``1 - C(n-c, k) / C(n, k)``. Integers are exact here, so
there is no need of the product form that avoids overflow.

A group may also agree on its *outcome* (all pass, or none) while its rewards, which shaping tells
apart, differ: it has advantages, and they say nothing about passing. Such a group is
outcome-degenerate, and counted apart from those whose rewards agree.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb, expm1, isfinite, log
from typing import NamedTuple, TypeVar

_Counts = TypeVar("_Counts", bound="Sums")


class Sums:
    """A dataclass of sums: two are added field by field."""

    def __add__(self: _Counts, other: _Counts) -> _Counts:
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return type(self)(**added)


class DegenerateFraction(NamedTuple):
    """Probability that a group is degenerate, in [0, 1], split by what its rewards agree on."""

    all_wrong: float
    all_right: float

    @property
    def total(self) -> float:
        """All wrong or all right."""
        return self.all_wrong + self.all_right


def check_success_threshold(threshold: float) -> None:
    """Raise ValueError unless rewards can be compared with it."""
    if isinstance(threshold, bool) or not isfinite(threshold):
        raise ValueError(
            "success_threshold is the reward at which a rollout passes, a finite number such as 1; "
            f"got {threshold!r}"
        )


def _check_group_size(group_size: int) -> None:
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(
            "group_size is the number of rollouts per prompt in RL, a whole number >= 1; got "
            f"{group_size!r}"
        )


def _check_rate(pass_rate: float) -> None:
    if not 0.0 <= pass_rate <= 1.0:
        raise ValueError(f"a pass rate lies in [0, 1]; got {pass_rate!r}")


def check_counts(num_samples: int, num_passed: int) -> None:
    """Raise ValueError unless ``0 <= num_passed <= num_samples`` and ``num_samples >= 1``."""
    if num_samples < 1 or not 0 <= num_passed <= num_samples:
        raise ValueError(
            f"counts must satisfy 0 <= passed <= samples and samples >= 1; got {num_passed} of "
            f"{num_samples}"
        )


def p_star(group_size: int) -> float:
    """Majority-degeneration threshold ``1 - 2^(-1/g)``, in (0, 0.5]; ``p_star(8)`` is 0.083.

    A prompt with a pass rate below it gives an all-wrong group more often than not.
    """
    _check_group_size(group_size)
    return -expm1(-log(2.0) / group_size)


def degenerate_fraction(pass_rate: float, group_size: int) -> DegenerateFraction:
    """Degenerate probability of a group whose pass rate is *known*; use the estimate for counts."""
    _check_rate(pass_rate)
    _check_group_size(group_size)
    return DegenerateFraction((1.0 - pass_rate) ** group_size, pass_rate**group_size)


def estimate_degenerate_fraction(
    num_samples: int, num_passed: int, group_size: int
) -> DegenerateFraction:
    """Unbiased estimate of :func:`degenerate_fraction` from passes counted among samples.

    Raises:
        ValueError: ``num_samples < group_size``: no unbiased estimate exists.

    """
    check_counts(num_samples, num_passed)
    _check_group_size(group_size)
    if num_samples < group_size:
        raise ValueError(
            f"{num_samples} samples per prompt cannot show how often a group of {group_size} "
            f"agrees; draw at least {group_size} samples or give the group size that RL will use"
        )
    groups = comb(num_samples, group_size)
    return DegenerateFraction(
        comb(num_samples - num_passed, group_size) / groups, comb(num_passed, group_size) / groups
    )


def estimate_rewards_agree(rewards: Sequence[float], group_size: int) -> float:
    """Probability that all rewards of a group are the same number, unbiased from its samples.

    ``sum_v C(c_v, g) / C(n, g)``: ``c_v`` of the ``n`` rewards are ``v``.
    """
    _check_group_size(group_size)
    if len(rewards) < group_size:
        raise ValueError(f"{len(rewards)} rewards cannot show how often {group_size} agree")
    counts = Counter(rewards).values()
    return sum(comb(count, group_size) for count in counts) / comb(len(rewards), group_size)


def shaping_is_larger_part(outcome_degenerate: float, rewards_differ: float) -> bool:
    """Whether most groups that have a gradient have it from shaping alone.

    Args:
        outcome_degenerate: groups (or their share) that all pass, or all fail, with rewards that
            differ.
        rewards_differ: groups (or their share) whose rewards differ, the former among them.

    """
    return outcome_degenerate > 0.5 * rewards_differ


def expected_within_group_variance(pass_rate: float, group_size: int) -> float:
    """Proposition 1: ``p (1-p) (g-1) / g`` for a known pass rate, in [0, 0.25)."""
    _check_rate(pass_rate)
    _check_group_size(group_size)
    return pass_rate * (1.0 - pass_rate) * (group_size - 1) / group_size


def estimate_within_group_variance(num_samples: int, num_passed: int, group_size: int) -> float:
    """Unbiased estimate of :func:`expected_within_group_variance`; needs two samples.

    ``c (n-c) / (n (n-1))`` is the unbiased estimate of ``p (1-p)``.
    """
    check_counts(num_samples, num_passed)
    _check_group_size(group_size)
    if num_samples < 2:
        raise ValueError(
            "the variance of a group cannot be estimated from one sample; draw two or more"
        )
    spread = num_passed * (num_samples - num_passed) / (num_samples * (num_samples - 1))
    return spread * (group_size - 1) / group_size


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased pass@k of one prompt, in [0, 1].

    Raises:
        ValueError: ``k`` is not in 1..num_samples, or the counts are impossible.

    """
    check_counts(num_samples, num_passed)
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples per prompt ({num_samples}); draw more samples or "
            "lower k"
        )
    subsets = comb(num_samples, k)
    # One division of integers: pass@1 is then exactly passed / samples.
    return (subsets - comb(num_samples - num_passed, k)) / subsets


def default_ks(num_samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``num_samples``, which always is the last: 12 -> (1, 2, 4, 8, 12)."""
    if num_samples < 1:
        raise ValueError(f"at least one sample per prompt is needed; got {num_samples}")
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return (*powers, num_samples)
