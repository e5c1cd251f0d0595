"""pass@k: the probability that at least one of ``k`` rollouts of a prompt passes.

    pass@k = 1 - C(n-c, k) / C(n, k)          c of n rollouts passed, k <= n

This is the unbiased estimator of arXiv 2107.03374, equation 1. Integers are exact here, so there
is no need of the product form that avoids overflow.
"""

from math import comb

from entropyfloor.stats.groups import check_counts


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
