import numpy as np
import pytest

from entropyfloor.stats.intervals import Interval, bootstrap_interval, quantile_interval


def test_interval_agrees_with_the_t_interval_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=200)
    interval = bootstrap_interval(values)
    half = 1.972 * values.std(ddof=1) / np.sqrt(200)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_few_prompts_are_covered():
    """Expanded percentiles: about 95 % for ten prompts, where plain percentiles give about 90 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(600):
        interval = bootstrap_interval(rng.normal(size=10), seed=trial)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.92 <= covered / 600 <= 0.97


def test_ratio_resamples_numerator_and_denominator_together():
    tokens = np.array([1.0, 10.0, 100.0, 3.0])
    interval = bootstrap_interval(0.5 * tokens, tokens)
    assert interval == pytest.approx(Interval(0.5, 0.5))


def test_same_seed_same_interval():
    values = np.random.default_rng(2).random(30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_nothing_passed_is_not_certainty():
    interval = bootstrap_interval([0.0] * 24, bounds=Interval(0.0, 1.0))
    assert interval.low == 0.0
    assert (1.0 - interval.high) ** 24 == pytest.approx(0.025)
    mirrored = bootstrap_interval([1.0] * 24, bounds=Interval(0.0, 1.0))
    assert mirrored == pytest.approx((1.0 - interval.high, 1.0))


def test_one_prompt_has_no_interval():
    assert bootstrap_interval([0.3]) is None


def test_bad_input():
    with pytest.raises(ValueError, match="one numerator and one denominator per prompt"):
        bootstrap_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval([1.0, float("nan")])


def test_low_quantiles_are_covered():
    rng = np.random.default_rng(0)
    truth = np.quantile(rng.gamma(2.0, 1.0, (200_000, 8)) * rng.gamma(4.0, 0.25, (200_000, 1)), 0.1)
    covered = 0
    for trial in range(200):
        groups = rng.gamma(2.0, 1.0, (48, 8)) * rng.gamma(4.0, 0.25, (48, 1))
        found, interval = quantile_interval(groups, 0.1, seed=trial)
        assert interval.low <= found <= interval.high
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 200 <= 0.98


def test_quantile_of_one_prompt_has_no_interval():
    assert quantile_interval([[1.0, 2.0, 3.0]], 0.5) == (2.0, None)
    with pytest.raises(ValueError, match="quantile lies in"):
        quantile_interval([[1.0], [2.0]], 10.0)
