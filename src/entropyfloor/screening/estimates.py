"""Measures of one checkpoint from one value per prompt, each with its interval over prompts."""

from collections.abc import Sequence
from typing import Any

from entropyfloor.screening.options import Judging
from entropyfloor.stats.groups import (
    degenerate_fraction,
    estimate_degenerate_fraction,
    estimate_rewards_agree,
    estimate_within_group_variance,
    p_star,
)
from entropyfloor.stats.intervals import Interval, bootstrap_interval, quantile_interval
from entropyfloor.stats.pass_at_k import pass_at_k

_SHARE = Interval(0.0, 1.0)


class Estimates:
    """Computes measures and collects their intervals, by measure name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.intervals: dict[str, Interval] = {}

    def ratio(
        self,
        measure: str,
        above: Sequence[float],
        below: Sequence[float] | None = None,
        bounds: Interval | None = None,
    ) -> float:
        """``sum(above) / sum(below)``; the mean of ``above`` without ``below``."""
        self._keep(measure, bootstrap_interval(above, below, bounds=bounds, seed=self._seed))
        return float(sum(above) / (len(above) if below is None else sum(below)))

    def share(self, measure: str, values: Sequence[float]) -> float:
        """Mean over prompts of a value in [0, 1]."""
        return self.ratio(measure, values, bounds=_SHARE)

    def quantile(self, measure: str, groups: Sequence[Sequence[float]], quantile: float) -> float:
        """Quantile over all rollouts."""
        value, interval = quantile_interval(groups, quantile, seed=self._seed)
        self._keep(measure, interval)
        return value

    def _keep(self, measure: str, interval: Interval | None) -> None:
        if interval is not None:
            self.intervals[measure] = interval


def scored_metrics(
    rewards: Sequence[Sequence[float]], judging: Judging, estimate: Estimates
) -> dict[str, Any]:
    """Compute what needs a reward from the rewards of each prompt."""
    size, threshold = judging.group_size, judging.success_threshold
    counts = [(len(group), sum(value >= threshold for value in group)) for group in rewards]
    degenerate = [estimate_degenerate_fraction(n, c, size) for n, c in counts]
    variance = None
    if all(n >= 2 for n, _ in counts):
        variance = estimate.ratio(
            "within_group_variance",
            [estimate_within_group_variance(n, c, size) for n, c in counts],
        )
    rates = [c / n for n, c in counts]
    pass_at_1 = estimate.share("pass_at_1", rates)
    return {
        "num_scored_prompts": len(counts),
        "pass_at_1": pass_at_1,
        "per_prompt_pass_rates": tuple(rates),
        "pass_at_k": {
            k: estimate.share(f"pass_at_{k}", [pass_at_k(n, c, k) for n, c in counts])
            for k in judging.ks or ()
        },
        "degenerate_fraction": estimate.share(
            "degenerate_fraction", [part.total for part in degenerate]
        ),
        "degenerate_all_wrong": estimate.share(
            "degenerate_all_wrong", [part.all_wrong for part in degenerate]
        ),
        "degenerate_all_right": estimate.share(
            "degenerate_all_right", [part.all_right for part in degenerate]
        ),
        "outcome_degenerate_fraction": estimate.share(
            "outcome_degenerate_fraction",
            [
                max(0.0, part.total - estimate_rewards_agree(group, size))
                for part, group in zip(degenerate, rewards, strict=True)
            ],
        ),
        **_predicted(pass_at_1, size, estimate.intervals),
        "within_group_variance": variance,
        "p_hat_over_p_star": estimate.ratio(
            "p_hat_over_p_star",
            [rate / p_star(size) for rate in rates],
            bounds=Interval(0.0, 1.0 / p_star(size)),
        ),
        "mean_reward": estimate.ratio("mean_reward", [sum(g) / len(g) for g in rewards]),
    }


def _predicted(rate: float, size: int, intervals: dict[str, Interval]) -> dict[str, float]:
    """Degenerate fraction if all prompts had the mean pass rate; intervals from that of the rate.

    ``(1-p)^g`` falls with p and ``p^g`` rises; their sum is least at 1/2.
    """
    names = [f"degenerate_predicted{part}" for part in ("", "_all_wrong", "_all_right")]
    degenerate = degenerate_fraction(rate, size)
    if (interval := intervals.get("pass_at_1")) is not None:
        low, high = (degenerate_fraction(min(1.0, max(0.0, end)), size) for end in interval)
        totals = [low.total, high.total]
        if interval.low < 0.5 < interval.high:
            totals.append(degenerate_fraction(0.5, size).total)
        intervals[names[0]] = Interval(min(totals), max(totals))
        intervals[names[1]] = Interval(high.all_wrong, low.all_wrong)
        intervals[names[2]] = Interval(low.all_right, high.all_right)
    return dict(
        zip(names, (degenerate.total, degenerate.all_wrong, degenerate.all_right), strict=True)
    )


def scored_groups(groups: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Rewards by prompt, without the prompts that the reward does not apply to.

    Raises:
        ValueError: a reward that applies to some rollouts of a prompt only, or to none at all.

    """
    scored = []
    for index, group in enumerate(groups):
        numbers = [value for value in group if value is not None]
        if numbers and len(numbers) < len(group):
            raise ValueError(
                f"the reward is None for {len(group) - len(numbers)} of {len(group)} rollouts of "
                f"prompt {index}; whether a reward applies must depend on the prompt alone: "
                "return 0.0 for a wrong completion"
            )
        if numbers:
            scored.append(numbers)
    if not scored:
        raise ValueError("the reward is None for every prompt, so it applies to none of them")
    return scored
