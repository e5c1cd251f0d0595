"""Degenerate groups, pass rates and variances against counts made by hand."""

import numpy as np
import pytest

from entropyfloor.rl.group_counts import GroupCounts, count_groups

NAN = float("nan")
ONE = np.ones(1)


def column(*groups):
    return np.array([value for group in groups for value in group], dtype=float)[:, None]


def test_one_binary_reward():
    counts = count_groups(
        column([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]), ONE, 4
    )
    assert (counts.groups, counts.all_wrong, counts.all_right) == (5, 2, 1)
    assert (counts.other_degenerate, counts.unscored) == (0, 0)
    assert (counts.rollouts, counts.passed, counts.rewarded) == (20, 8, 20)
    rates = counts.rates(4)
    assert rates["degenerate_fraction"] == 3 / 5
    assert rates["degenerate_all_wrong"] == 2 / 5
    assert rates["degenerate_all_right"] == 1 / 5
    assert rates["pass_rate"] == rates["mean_reward"] == 0.4
    assert rates["p_hat_over_p_star"] == pytest.approx(0.4 / (1 - 2 ** (-1 / 4)))
    assert rates["expected_variance"] == pytest.approx(0.4 * 0.6 * 3 / 4)
    # The population variance of each whole group is its unbiased p(1-p)(g-1)/g.
    by_hand = np.mean([0, 0, np.var([0, 1, 0, 0]), np.var([1, 1, 0, 1]), 0])
    assert rates["within_group_variance"] == pytest.approx(by_hand)


def test_the_papers_reward_of_two():
    counts = count_groups(column([2, 2], [0, 2], [0, 0]), ONE, 2)
    assert (counts.all_wrong, counts.all_right, counts.passed) == (1, 1, 3)
    assert counts.rates(2)["mean_reward"] == 1.0


def test_partial_credit_that_agrees_is_degenerate_and_wrong():
    counts = count_groups(column([0.5, 0.5], [0.5, 0.4]), ONE, 2)
    assert (counts.all_wrong, counts.all_right, counts.passed) == (1, 0, 0)
    lenient = count_groups(column([0.5, 0.5], [0.5, 0.4]), ONE, 2, success_threshold=0.5)
    assert (lenient.all_wrong, lenient.all_right, lenient.passed) == (0, 1, 3)


def test_weights_decide_what_is_compared():
    rewards = np.array([[1, 0], [0, 2], [1, 5], [1, 6]], dtype=float)
    summed = count_groups(rewards, np.array([1.0, 0.5]), 2)
    # Group 1: totals 1 and 1, though one passed and the other did not.
    assert (summed.degenerate, summed.other_degenerate) == (1, 1)
    assert (summed.passed, summed.rollouts) == (3, 4)
    # The second function does not count: group 2 agrees, group 1 does not.
    first = count_groups(rewards, np.array([1.0, 0.0]), 2)
    assert (first.all_right, first.other_degenerate, first.degenerate) == (1, 0, 1)
    # Each function by itself: no group agrees in both.
    each = count_groups(rewards, np.array([1.0, 0.5]), 2, each_function=True)
    assert each.degenerate == 0
    assert count_groups(rewards, np.array([1.0, 0.0]), 2, each_function=True).degenerate == 1


def test_another_function_tells_who_passed():
    rewards = np.array([[0.2, 0], [0.2, 1], [0.1, 1], [0.3, 1]])
    counts = count_groups(rewards, np.ones(2), 2, success_function=1)
    assert (counts.passed, counts.rollouts, counts.degenerate) == (3, 4, 0)


def test_outcomes_that_agree_while_shaped_rewards_differ_are_counted_apart():
    groups = [[0.1, 0.2], [1.0, 1.5], [1.0, 0.0], [0.1, 0.1], [NAN, NAN]]
    counts = count_groups(column(*groups), ONE, 2)
    assert (counts.groups, counts.outcome_degenerate, counts.degenerate) == (4, 2, 1)
    assert counts.rates(2)["outcome_degenerate_fraction"] == 0.5
    assert counts.shaping_is_larger_part  # two of the three that have a gradient
    assert not count_groups(column(*groups[1:]), ONE, 2).shaping_is_larger_part
    # A second function shapes; the first tells who passed, and agrees.
    rewards = np.array([[0, 0.3], [0, 0.1], [1, 0.2], [1, 0.2]])
    shaped = count_groups(rewards, np.ones(2), 2)
    assert (shaped.outcome_degenerate, shaped.all_right) == (1, 1)


def test_rollouts_that_no_function_scored():
    rewards = column([NAN, NAN], [NAN, 1], [0, NAN], [1, 0])
    counts = count_groups(rewards, ONE, 2)
    assert (counts.unscored, counts.groups) == (1, 3)
    # One scored rollout has the group's mean for its reward: no advantage.
    assert (counts.all_right, counts.all_wrong) == (1, 1)
    assert (counts.rollouts, counts.passed, counts.variance_groups) == (4, 2, 1)
    nothing = count_groups(column([NAN, NAN]), ONE, 2)
    assert (nothing.unscored, nothing.rates(2)) == (1, {})


def test_sums_add_up():
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (24, 1)).astype(float)
    halves = count_groups(rewards[:8], ONE, 4) + count_groups(rewards[8:], ONE, 4)
    assert halves == count_groups(rewards, ONE, 4)
    assert GroupCounts() + halves == halves


def test_agrees_with_proposition_one_in_expectation():
    """Over many groups of one pass rate: p^g + (1-p)^g degenerate, p(1-p)(g-1)/g variance."""
    rng = np.random.default_rng(1)
    p, g = 0.2, 8
    rewards = (rng.random((g * 20_000, 1)) < p).astype(float)
    rates = count_groups(rewards, ONE, g).rates(g)
    assert rates["degenerate_all_wrong"] == pytest.approx((1 - p) ** g, abs=0.01)
    assert rates["within_group_variance"] == pytest.approx(p * (1 - p) * (g - 1) / g, abs=0.002)
    assert rates["expected_variance"] == pytest.approx(rates["within_group_variance"], abs=0.002)


def test_part_of_a_group_is_refused():
    with pytest.raises(ValueError, match="not whole groups of 4"):
        count_groups(column([0, 1, 0]), ONE, 4)
