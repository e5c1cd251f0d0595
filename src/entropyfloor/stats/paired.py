"""What two checkpoints differ by on the same prompts, with intervals that hold for the difference.

Prompts are drawn again once for both, so what makes a prompt hard for both cancels:

    d   = sum_i a2_i / sum_i b2_i - sum_i a1_i / sum_i b1_i        i runs over the prompts of both

and its interval is the expanded percentile interval of ``intervals.py``. That each one's own
intervals overlap says little: the variance of a difference is less than the sum of theirs by twice
the covariance.

A band over many metrics of one pair (pass@k for every k) holds for all of them at once, by the
largest studentised deviation of the joint bootstrap (sup-t; Montiel Olea and Plagborg-Moller,
Journal of Applied Econometrics 34, 2019):

    s_k  = standard deviation of d_k over resamples          d*_k: d_k of one resample
    c    = quantile of  max_k |d*_k - d_k| / s_k             over resamples
    band = d_k - c s_k ... d_k + c s_k

The quantile is taken at the expanded level too. Coverage measured on nets whose exact values are
known (tests/entropyfloor/screening/test_paired_simulation.py).

If every prompt differs by the same ``x`` the bootstrap sees no spread. A mean ``mu`` of values in
[-1, 1] makes a prompt differ from ``x`` with probability at least ``|mu - x| / (1 + |x|)``, so what
lies further from ``x`` than ``(1 + |x|) (1 - (alpha/2)^(1/n))`` is excluded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from entropyfloor.stats.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_interval,
    expanded_tail,
    resampled_ratios,
)


class Ratio(NamedTuple):
    """``sum(above) / sum(below)``: numbers of one checkpoint, prompt by prompt."""

    above: Sequence[float]
    below: Sequence[float]

    @property
    def value(self) -> float:
        """The ratio itself."""
        return float(sum(self.above) / sum(self.below))


def difference_interval(
    first: Ratio,
    second: Ratio,
    *,
    confidence: float = 0.95,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Interval of ``second - first``, resampling the prompts of both together.

    Args:
        first: one numerator and one denominator per prompt.
        second: the same prompts in the same order.
        confidence: coverage aimed at, in (0, 1).
        num_resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        The interval, or None for fewer than two prompts.

    """
    sides = [tuple(np.asarray(part, np.float64) for part in ratio) for ratio in (first, second)]
    if len({part.shape for side in sides for part in side}) != 1 or sides[0][0].ndim != 1:
        raise ValueError(
            "a difference needs both checkpoints' numbers of the same prompts; got "
            f"{[part.shape for side in sides for part in side]}"
        )
    count = len(sides[0][0])
    if count < 2:
        return None
    before, after = (
        resampled_ratios(above, below, num_resamples=num_resamples, seed=seed)
        for above, below in sides
    )
    drawn = after - before
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return None
    tail = expanded_tail(count, confidence)
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def share_difference_interval(
    differences: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """Interval of a mean of differences of shares, each in [-1, 1], one per prompt."""
    values = np.asarray(differences, np.float64)
    if len(values) >= 2 and (values == values[0]).all():
        return _without_spread(float(values[0]), len(values), 1.0 - confidence)
    return bootstrap_interval(values.tolist(), confidence=confidence, seed=seed)


def simultaneous_band(
    differences: np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval] | None:
    """A band around the means of ``differences`` that covers all true means at once.

    Args:
        differences: fp64 ``[prompts, metrics]``, each in [-1, 1].
        confidence: probability aimed at that every metric lies inside.
        num_resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        An interval per metric, within [-1, 1]; None for fewer than two prompts.

    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > 1.0:
        raise ValueError(
            "a band needs one finite difference in [-1, 1] per prompt and metric, [prompts, "
            f"metrics]; got shape {values.shape}"
        )
    count, metrics = values.shape
    if count < 2:
        return None
    means = values.mean(axis=0)
    flat = (values == values[0]).all(axis=0)
    below = np.ones((count, 1))
    deviations = resampled_ratios(values, below, num_resamples=num_resamples, seed=seed) - means
    spread = deviations.std(axis=0)
    reach = np.zeros(metrics)
    if not flat.all():
        largest = (np.abs(deviations[:, ~flat]) / spread[~flat]).max(axis=1)
        level = 1.0 - 2.0 * expanded_tail(count, confidence)
        reach[~flat] = float(np.quantile(largest, level)) * spread[~flat]
    band = []
    for mean, half, same in zip(means.tolist(), reach.tolist(), flat.tolist(), strict=True):
        if same:  # of several such metrics each has its share of the error
            band.append(_without_spread(mean, count, (1.0 - confidence) / metrics))
        else:
            band.append(Interval(max(-1.0, mean - half), min(1.0, mean + half)))
    return band


def _without_spread(value: float, count: int, error: float) -> Interval:
    reach = (1.0 + abs(value)) * (1.0 - (error / 2.0) ** (1.0 / count))
    return Interval(max(-1.0, value - reach), min(1.0, value + reach))
