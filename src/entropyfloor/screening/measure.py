"""Rollouts and rewards of one checkpoint -> its measures, each with an interval over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        rewards: one per rollout, or None without a reward. A prompt whose rewards are all None is left out of
            what needs a reward.
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
    intervals: dict[str, Interval] = {}

    def ratio(measure: str, above: Sequence[float], below: Sequence[float] | None = None) -> float:
        interval = bootstrap_interval(above, below, seed=settings.seed)
        if interval is not None:
            intervals[measure] = interval
        return float(sum(above) / (len(above) if below is None else sum(below)))

    tokens = [float(sum(len(rollout.token_ids) for rollout in group)) for group in groups]
    counts = [float(len(group)) for group in groups]
    entropy = ratio(
        "entropy_nats",
        [float(sum(r.entropies_nats.sum(dtype=float) for r in group)) for group in groups],
        tokens,
    )
    unique = ratio("unique_fraction", [unique_fraction([r.text for r in g]) for g in groups])
    mean_tokens = ratio("mean_tokens", tokens, counts)
    truncated = ratio(
        "truncated_fraction", [float(sum(r.truncated for r in g)) for g in groups], counts
    )

    scored: dict[str, float | None] = {}
    passes: dict[int, float] = {}
    num_scored = None
    if rewards is not None:
        values = _scored_groups([[rewards[index] for index in ids] for ids in by_prompt.values()])
        num_scored = len(values)
        passed = [
            (len(group), sum(value >= settings.success_threshold for value in group))
            for group in values
        ]
        size = settings.group_size
        degenerate = [estimate_degenerate_fraction(n, c, size) for n, c in passed]
        scored["pass_at_1"] = ratio("pass_at_1", [c / n for n, c in passed])
        for k in settings.ks:
            passes[k] = ratio(f"pass_at_{k}", [pass_at_k(n, c, k) for n, c in passed])
        scored["degenerate_fraction"] = ratio(
            "degenerate_fraction", [part.total for part in degenerate]
        )
        scored["degenerate_all_wrong"] = ratio(
            "degenerate_all_wrong", [part.all_wrong for part in degenerate]
        )
        scored["degenerate_all_right"] = ratio(
            "degenerate_all_right", [part.all_right for part in degenerate]
        )
        if all(n >= 2 for n, _ in passed):
            scored["within_group_variance"] = ratio(
                "within_group_variance",
                [estimate_within_group_variance(n, c, size) for n, c in passed],
            )
        scored["p_hat_over_p_star"] = ratio(
            "p_hat_over_p_star", [c / n / p_star(size) for n, c in passed]
        )
        scored["mean_reward"] = ratio("mean_reward", [sum(group) / len(group) for group in values])

    judged = verdict(
        entropy,
        tau_h=settings.tau_h,
        interval=intervals.get("entropy_nats"),
        p_hat_over_p_star=scored.get("p_hat_over_p_star"),
        degenerate_fraction=scored.get("degenerate_fraction"),
        group_size=settings.group_size,
        truncated_fraction=truncated,
        temperature=settings.temperature,
    )
    return CheckpointScreening(
        name=name,
        path=path,
        num_prompts=len(groups),
        num_rollouts=len(rollouts),
        entropy_nats=entropy,
        unique_fraction=unique,
        mean_tokens=mean_tokens,
        truncated_fraction=truncated,
        num_scored_prompts=num_scored,
        pass_at_k=passes,
        intervals=intervals,
        flagged=judged.flagged,
        reasons=judged.reasons,
        notes=judged.notes,
        runtime_s=runtime_s,
        **scored,
    )


def _scored_groups(groups: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Rewards by prompt, without the prompts that the reward does not apply to."""
    scored = []
    for index, group in enumerate(groups):
        numbers = [value for value in group if value is not None]
        if numbers and len(numbers) < len(group):
            raise ValueError(
                f"the reward is None for {len(group) - len(numbers)} of {len(group)} rollouts of prompt {index}; "
                "whether a reward applies must depend on the prompt alone: return 0.0 for a wrong completion"
            )
        if numbers:
            scored.append(numbers)
    if not scored:
        raise ValueError("the reward is None for every prompt, so it applies to none of them")
    return scored
