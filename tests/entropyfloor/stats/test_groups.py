import itertools
import math

import pytest

from entropyfloor.stats.groups import (
    default_ks,
    degenerate_fraction,
    estimate_degenerate_fraction,
    estimate_rewards_agree,
    estimate_within_group_variance,
    expected_within_group_variance,
    p_star,
    pass_at_k,
    shaping_is_larger_part,
)


def test_p_star_of_eight_is_the_papers():
    assert p_star(8) == pytest.approx(0.083, abs=5e-4)
    assert p_star(1) == 0.5


@pytest.mark.parametrize("group_size", [1, 2, 8, 64, 10_000])
def test_half_of_the_groups_are_all_wrong_at_p_star(group_size):
    assert (1 - p_star(group_size)) ** group_size == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("group_size", [0, -1, 2.0, True, "8"])
def test_impossible_group_sizes(group_size):
    with pytest.raises(ValueError, match="group_size is the number of rollouts"):
        p_star(group_size)


def _expectation(estimator, samples, pass_rate):
    """Mean of an estimator over the binomial distribution of its count, by enumeration."""
    return sum(
        math.comb(samples, c) * pass_rate**c * (1 - pass_rate) ** (samples - c) * estimator(c)
        for c in range(samples + 1)
    )


@pytest.mark.parametrize("pass_rate", [0.0, 0.03, 0.5, 0.77, 1.0])
@pytest.mark.parametrize(("samples", "group"), [(4, 4), (8, 3), (16, 8), (9, 1)])
def test_degenerate_estimate_is_unbiased(samples, group, pass_rate):
    truth = degenerate_fraction(pass_rate, group)
    for part in ("all_wrong", "all_right", "total"):
        mean = _expectation(
            lambda c, part=part: getattr(estimate_degenerate_fraction(samples, c, group), part),
            samples,
            pass_rate,
        )
        assert mean == pytest.approx(getattr(truth, part), abs=1e-12)


def test_degenerate_estimate_counts_subsets():
    rewards = [1, 0, 0, 1, 0, 0, 0]
    subsets = list(itertools.combinations(rewards, 3))
    estimate = estimate_degenerate_fraction(7, 2, 3)
    assert estimate.all_wrong == pytest.approx(
        sum(not any(subset) for subset in subsets) / len(subsets)
    )
    assert estimate.all_right == sum(all(subset) for subset in subsets) / len(subsets) == 0.0


def test_plugging_the_rate_in_would_be_biased():
    biased = _expectation(lambda c: degenerate_fraction(c / 8, 8).total, 8, 0.2)
    assert abs(biased - degenerate_fraction(0.2, 8).total) > 0.1


@pytest.mark.parametrize("pass_rate", [0.0, 0.2, 0.5, 1.0])
def test_variance_estimate_is_unbiased(pass_rate):
    mean = _expectation(lambda c: estimate_within_group_variance(6, c, 8), 6, pass_rate)
    assert mean == pytest.approx(expected_within_group_variance(pass_rate, 8), abs=1e-12)


def test_proposition_one_by_enumeration():
    group, rate = 4, 0.3
    expected = 0.0
    for rewards in itertools.product([0, 1], repeat=group):
        mean = sum(rewards) / group
        variance = sum((r - mean) ** 2 for r in rewards) / group
        expected += variance * rate ** sum(rewards) * (1 - rate) ** (group - sum(rewards))
    assert expected_within_group_variance(rate, group) == pytest.approx(expected, rel=1e-12)


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match="draw at least 8 samples"):
        estimate_degenerate_fraction(4, 2, 8)
    with pytest.raises(ValueError, match="got 5 of 4"):
        estimate_degenerate_fraction(4, 5, 2)
    with pytest.raises(ValueError, match="draw two or more"):
        estimate_within_group_variance(1, 1, 8)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        degenerate_fraction(1.2, 8)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rewards_that_agree_are_counted_over_all_groups(size):
    rewards = [0.0, 0.1, 0.1, 1.0, 1.0, 1.0, 0.3]
    groups = list(itertools.combinations(rewards, size))
    agree = sum(len(set(group)) == 1 for group in groups) / len(groups)
    assert estimate_rewards_agree(rewards, size) == pytest.approx(agree)


def test_what_has_to_do_with_shaping():
    with pytest.raises(ValueError, match="3 rewards cannot show how often 4 agree"):
        estimate_rewards_agree([1, 2, 3], 4)
    assert shaping_is_larger_part(6, 10) and not shaping_is_larger_part(5, 10)
    assert not shaping_is_larger_part(0, 0)


@pytest.mark.parametrize("samples", [1, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(samples):
    for passed in range(samples + 1):
        outcomes = [1] * passed + [0] * (samples - passed)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-15)


def test_large_counts_do_not_overflow():
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_must_not_exceed_the_samples(k):
    with pytest.raises(ValueError, match="draw more samples or lower k"):
        pass_at_k(8, 3, k)


def test_default_ks():
    assert default_ks(1) == (1,)
    assert default_ks(8) == (1, 2, 4, 8)
    assert default_ks(12) == (1, 2, 4, 8, 12)
