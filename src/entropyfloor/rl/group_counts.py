"""Count the degenerate groups of one generation batch from its rewards.

A group teaches nothing when all its advantages are zero, that is when its rewards agree:

    sum_then_normalize   the weighted sum of the reward functions is the same for all its rollouts
    normalize_then_sum   each reward function with a weight agrees by itself

Both hold whatever the advantages are divided by. trl's ``frac_reward_zero_std`` tests the standard
deviation it divides by, which under ``scale_rewards="batch"`` and ``normalize_then_sum`` is that of
the whole batch: it reports 0 as long as any two groups differ.

A group may have advantages although all its rollouts passed, or none did, because shaped rewards
differ: it is *outcome-degenerate*, and counted apart from these.

Whether a rollout *passed* is told by one reward function, unweighted: reward >= success_threshold.
NaN is what trl makes of a None: a rollout that no function scored is left out, a group of such
rollouts is counted as unscored.
"""

from dataclasses import dataclass

import numpy as np

from entropyfloor.stats.groups import (
    Sums,
    estimate_within_group_variance,
    expected_within_group_variance,
    p_star,
    shaping_is_larger_part,
)


@dataclass(frozen=True)
class GroupCounts(Sums):
    """Sums over groups; add them up over batches with ``+``."""

    groups: int = 0  # groups with at least one scored rollout
    all_wrong: int = 0  # degenerate, and no rollout passed
    all_right: int = 0  # degenerate, and every rollout passed
    other_degenerate: int = 0  # degenerate otherwise (some passed, but penalties even it out)
    unscored: int = 0  # groups without any scored rollout; in none of the other counts
    rollouts: int = 0  # rollouts of which is known whether they passed
    passed: int = 0  # how many of them did
    rewarded: int = 0  # rollouts with a reward
    reward_sum: float = 0.0  # sum of their weighted rewards
    # Sum over variance_groups of the unbiased p(1-p)(g-1)/g of each group
    variance_sum: float = 0.0
    variance_groups: int = 0  # groups with two or more rollouts of which it is known
    # Not degenerate, although all passed or none did: shaped rewards differ
    outcome_degenerate: int = 0

    @property
    def shaping_is_larger_part(self) -> bool:
        """Whether most groups with a gradient have it from shaping alone."""
        return shaping_is_larger_part(self.outcome_degenerate, self.groups - self.degenerate)

    @property
    def degenerate(self) -> int:
        """Groups whose rewards all agree."""
        return self.all_wrong + self.all_right + self.other_degenerate

    def rates(self, group_size: int) -> dict[str, float]:
        """What the counts say, by name; nothing that would divide by zero."""
        rates: dict[str, float] = {}
        if self.groups:
            rates["degenerate_fraction"] = self.degenerate / self.groups
            rates["degenerate_all_wrong"] = self.all_wrong / self.groups
            rates["degenerate_all_right"] = self.all_right / self.groups
            rates["outcome_degenerate_fraction"] = self.outcome_degenerate / self.groups
        if self.rewarded:
            rates["mean_reward"] = self.reward_sum / self.rewarded
        if self.rollouts:
            rate = self.passed / self.rollouts
            rates["pass_rate"] = rate
            rates["p_hat_over_p_star"] = rate / p_star(group_size)
            # Proposition 1 for one pass rate; groups that differ have less, by Jensen.
            rates["expected_variance"] = expected_within_group_variance(rate, group_size)
        if self.variance_groups:
            rates["within_group_variance"] = self.variance_sum / self.variance_groups
        return rates


def count_groups(
    rewards: np.ndarray,
    weights: np.ndarray,
    group_size: int,
    *,
    success_function: int = 0,
    success_threshold: float = 1.0,
    each_function: bool = False,
) -> GroupCounts:
    """Count the groups of one batch.

    Args:
        rewards: ``[groups * group_size, functions]``, rollouts of a group side by side; NaN where a
            function does not apply.
        weights: ``[functions]``.
        group_size: rollouts per group.
        success_function: column that tells whether a rollout passed.
        success_threshold: it did if that reward is at least this.
        each_function: every weighted function must agree, not only their sum.

    Raises:
        ValueError: rewards that are not whole groups.

    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or len(rewards) % group_size:
        raise ValueError(
            f"rewards of shape {rewards.shape} are not whole groups of {group_size}: give one row "
            "per rollout and one column per reward function"
        )
    totals = np.nansum(rewards * weights, axis=1)
    totals[np.isnan(rewards).all(axis=1)] = np.nan
    weighted = [column for column in range(rewards.shape[1]) if weights[column] != 0.0]
    compared = rewards[:, weighted] if each_function else totals[:, None]
    counts = GroupCounts()
    for start in range(0, len(rewards), group_size):
        rows = slice(start, start + group_size)
        scored = totals[rows]
        scored = scored[~np.isnan(scored)]
        if not len(scored):
            counts += GroupCounts(unscored=1)
            continue
        deciding = rewards[rows, success_function]
        deciding = deciding[~np.isnan(deciding)]
        known, passed = len(deciding), int((deciding >= success_threshold).sum())
        degenerate = all(_agree(column) for column in compared[rows].T)
        wrong = degenerate and known > 0 and passed == 0
        right = degenerate and known > 0 and passed == known
        variance = estimate_within_group_variance(known, passed, group_size) if known > 1 else 0.0
        counts += GroupCounts(
            groups=1,
            all_wrong=int(wrong),
            all_right=int(right),
            other_degenerate=int(degenerate and not wrong and not right),
            rollouts=known,
            passed=passed,
            rewarded=len(scored),
            reward_sum=float(scored.sum()),
            variance_sum=variance,
            variance_groups=int(known > 1),
            outcome_degenerate=int(not degenerate and known > 0 and passed in (0, known)),
        )
    return counts


def _agree(column: np.ndarray) -> bool:
    values = column[~np.isnan(column)]
    return len(values) == 0 or bool(values.max() == values.min())
