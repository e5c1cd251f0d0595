"""Rollouts and rewards of one checkpoint -> its measures, each with an interval over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.measures.diversity import unique_fraction
from entropyfloor.measures.groups import (
    estimate_degenerate_fraction,
    estimate_within_group_variance,
    p_star,
)
from entropyfloor.measures.intervals import Interval, bootstrap_interval
from entropyfloor.measures.pass_at_k import pass_at_k
from entropyfloor.screening.report import CheckpointScreening
from entropyfloor.screening.rollouts import Rollout
from entropyfloor.screening.verdict import verdict


@dataclass(frozen=True)
class MeasureSettings:
    """What is computed from the rollouts, beside how they were drawn.

    Attributes:
        group_size: rollouts per prompt in RL.
        ks: for which k pass@k is reported.
        success_threshold: a rollout passes if its reward is at least this.
        tau_h: flagged below this many nats.
        temperature: what the rollouts were drawn at.
        seed: of the bootstrap.

    """

    group_size: int
    ks: tuple[int, ...]
    success_threshold: float
    tau_h: float
    temperature: float
    seed: int


def measure_checkpoint(
    rollouts: Sequence[Rollout],
    rewards: Sequence[float | None] | None,
    *,
    name: str,
    path: str,
    settings: MeasureSettings,
    runtime_s: float = 0.0,
) -> CheckpointScreening:
    """All measures of one checkpoint and its verdict.

    Args:
        rollouts: at least one per prompt, in any order.
        rewards: one per rollout, or None without a reward. A prompt whose rewards are all None is
            left out of what needs a reward.
        name: of the checkpoint.
        path: of the checkpoint.
        settings: see :class:`MeasureSettings`.
        runtime_s: for the record.

    Raises:
        ValueError: a reward that applies to some rollouts of a prompt only, or to none at all.

    """
    # In request order, so that sums do not depend on how rollouts were batched.
    order = sorted(
        range(len(rollouts)), key=lambda i: (rollouts[i].prompt_index, rollouts[i].sample_index)
    )
    by_prompt: dict[int, list[int]] = {}
    for index in order:
        by_prompt.setdefault(rollouts[index].prompt_index, []).append(index)
    groups = [[rollouts[index] for index in indices] for indices in by_prompt.values()]

    estimate = _Estimates(settings.seed)
    tokens = [float(sum(len(rollout.token_ids) for rollout in group)) for group in groups]
    measures: dict[str, Any] = {
        "entropy_nats": estimate.ratio(
            "entropy_nats",
            [float(sum(r.entropies_nats.sum(dtype=float) for r in group)) for group in groups],
            tokens,
        ),
        "unique_fraction": estimate.share(
            "unique_fraction", [unique_fraction([r.text for r in group]) for group in groups]
        ),
        "mean_tokens": estimate.ratio("mean_tokens", tokens, [float(len(g)) for g in groups]),
        "truncated_fraction": estimate.share(
            "truncated_fraction", [sum(r.truncated for r in g) / len(g) for g in groups]
        ),
    }
    if rewards is not None:
        scored = _scored_groups([[rewards[i] for i in indices] for indices in by_prompt.values()])
        measures.update(_scored_measures(scored, settings, estimate))

    judged = verdict(
        measures["entropy_nats"],
        tau_h=settings.tau_h,
        interval=estimate.intervals.get("entropy_nats"),
        p_hat_over_p_star=measures.get("p_hat_over_p_star"),
        degenerate_fraction=measures.get("degenerate_fraction"),
        group_size=settings.group_size,
        truncated_fraction=measures["truncated_fraction"],
        temperature=settings.temperature,
    )
    return CheckpointScreening(
        name=name,
        path=path,
        num_prompts=len(groups),
        num_rollouts=len(rollouts),
        intervals=estimate.intervals,
        flagged=judged.flagged,
        reasons=judged.reasons,
        notes=judged.notes,
        runtime_s=runtime_s,
        **measures,
    )


class _Estimates:
    """Computes measures from one value per prompt and collects their intervals."""

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
        interval = bootstrap_interval(above, below, bounds=bounds, seed=self._seed)
        if interval is not None:
            self.intervals[measure] = interval
        return float(sum(above) / (len(above) if below is None else sum(below)))

    def share(self, measure: str, values: Sequence[float]) -> float:
        """Mean over prompts of a value in [0, 1]."""
        return self.ratio(measure, values, bounds=Interval(0.0, 1.0))


def _scored_measures(
    rewards: Sequence[Sequence[float]], settings: MeasureSettings, estimate: _Estimates
) -> dict[str, Any]:
    """Compute what needs a reward from the rewards of each prompt."""
    size, threshold = settings.group_size, settings.success_threshold
    counts = [(len(group), sum(value >= threshold for value in group)) for group in rewards]
    degenerate = [estimate_degenerate_fraction(n, c, size) for n, c in counts]
    variance = None
    if all(n >= 2 for n, _ in counts):
        variance = estimate.ratio(
            "within_group_variance",
            [estimate_within_group_variance(n, c, size) for n, c in counts],
        )
    return {
        "num_scored_prompts": len(counts),
        "pass_at_1": estimate.share("pass_at_1", [c / n for n, c in counts]),
        "pass_at_k": {
            k: estimate.share(f"pass_at_{k}", [pass_at_k(n, c, k) for n, c in counts])
            for k in settings.ks
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
        "within_group_variance": variance,
        "p_hat_over_p_star": estimate.ratio(
            "p_hat_over_p_star",
            [c / n / p_star(size) for n, c in counts],
            bounds=Interval(0.0, 1.0 / p_star(size)),
        ),
        "mean_reward": estimate.ratio("mean_reward", [sum(g) / len(g) for g in rewards]),
    }


def _scored_groups(groups: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Rewards by prompt, without the prompts that the reward does not apply to."""
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
