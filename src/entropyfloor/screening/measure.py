"""Rollouts and rewards of one checkpoint -> its measures, each with an interval over prompts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import TokenSums
from entropyfloor.screening.options import Judging
from entropyfloor.screening.paired import PromptResults
from entropyfloor.screening.report import (
    CheckpointScreening,
    DegenerateExample,
    ExampleRollout,
    Histogram,
)
from entropyfloor.screening.texts import (
    JUNK,
    KINDS,
    kind_of_degenerate,
    repetition,
    self_bleu,
    unique_fraction,
)
from entropyfloor.screening.verdict import judge
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.groups import (
    degenerate_fraction,
    estimate_degenerate_fraction,
    estimate_rewards_agree,
    estimate_within_group_variance,
    p_star,
    pass_at_k,
)
from entropyfloor.stats.intervals import Interval, bootstrap_interval, quantile_interval

_EXAMPLE_PROMPTS, _EXAMPLE_SAMPLES = 3, 2
_EXAMPLES_OF_KIND = 2
_HISTOGRAM_EDGES = tuple(np.linspace(0.0, 6.0, 31).round(10).tolist())  # the last bin is open
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


def measure_checkpoint(
    rollouts: Sequence[Rollout],
    rewards: Sequence[float | None] | None,
    sampling: Sampling,
    judging: Judging,
    *,
    source: tuple[str, str],
    prompt_texts: Sequence[str],
    teacher_forced: dict[str, TokenSums] | None = None,
    sequential: SequentialRecord | None = None,
) -> CheckpointScreening:
    """All measures of one checkpoint, its verdict, and rollouts to look at.

    Args:
        rollouts: at least one per prompt, in any order; greedy ones count for greedy pass@1 only.
        rewards: one per rollout, or None without a reward. A prompt whose rewards are all None is
            left out of what needs a reward.
        sampling: how they were drawn; its seed is that of the bootstrap.
        judging: thresholds and group size, and pass@k at its ``ks``.
        source: name and path of the checkpoint.
        prompt_texts: of the whole prompt set.
        teacher_forced: ``held_out_loss``, ``kl_to_base`` or ``held_out_kl_to_base`` -> its sums.
        sequential: what ``until_decided`` did.

    Raises:
        ValueError: a reward that applies to some rollouts of a prompt only, or to none at all.

    """
    # In request order, so that sums do not depend on how rollouts were batched.
    order = sorted(
        range(len(rollouts)), key=lambda i: (rollouts[i].prompt_index, rollouts[i].sample_index)
    )
    sampled = [index for index in order if not rollouts[index].greedy]
    by_prompt: dict[int, list[int]] = {}
    for index in sampled:
        by_prompt.setdefault(rollouts[index].prompt_index, []).append(index)
    groups = [[rollouts[index] for index in indices] for indices in by_prompt.values()]

    estimate = Estimates(sampling.seed)
    metrics = _unscored_metrics(groups, estimate)
    kinds = {index: kind for index in sampled if (kind := kind_of(rollouts[index])) is not None}
    passing = {i for i in kinds if (rewards and (rewards[i] or 0.0) >= judging.success_threshold)}
    junk = {i for i, kind in kinds.items() if kind in JUNK and i not in passing}
    shares = [len(junk.intersection(indices)) / len(indices) for indices in by_prompt.values()]
    metrics["junk_fraction"] = estimate.share("junk_fraction", shares)
    infinite = []
    for measure, sums in (teacher_forced or {}).items():
        if np.isfinite(sums.sums).all():
            metrics[measure] = estimate.ratio(measure, sums.sums, sums.tokens)
        else:
            infinite.append(
                f"{measure} is left out: some of its logits are NaN or infinite; try dtype float32"
            )
    if rewards is not None:
        scored = scored_groups([[rewards[i] for i in indices] for indices in by_prompt.values()])
        metrics.update(scored_metrics(scored, judging, estimate))
        greedy = [rewards[i] for i in order if rollouts[i].greedy]
        passed = [float(r >= judging.success_threshold) for r in greedy if r is not None]
        if passed:
            metrics["greedy_pass_at_1"] = estimate.share("greedy_pass_at_1", passed)

    judged = judge(
        metrics,
        estimate.intervals,
        tau_h=judging.tau_h,
        group_size=judging.group_size,
        temperature=sampling.temperature,
        sequential=sequential,
    )
    example = partial(_example, rollouts, rewards, prompt_texts)
    return CheckpointScreening(
        *source,
        num_prompts=len(groups),
        num_rollouts=len(sampled),
        intervals=estimate.intervals,
        verdict=judged.verdict,
        flagged=judged.flagged,
        reasons=judged.reasons,
        notes=(*judged.notes, *_unscored_prompts(len(groups), metrics), *infinite),
        temperature=sampling.temperature,
        token_entropy_histogram=_histogram([r for group in groups for r in group]),
        degenerate_text={
            kind: share
            for kind in KINDS
            if (share := sum(k == kind for k in kinds.values()) / len(sampled))
        },
        # The first samples of the first prompts, which are the same for every checkpoint.
        examples=tuple(
            example(index)
            for indices in list(by_prompt.values())[:_EXAMPLE_PROMPTS]
            for index in indices
            if rollouts[index].sample_index < _EXAMPLE_SAMPLES
        ),
        degenerate_examples=tuple(
            DegenerateExample(kind, example(index))
            for kind in KINDS
            for index in [i for i, k in kinds.items() if k == kind][:_EXAMPLES_OF_KIND]
        ),
        prompt_results=PromptResults(
            prompt_indices=tuple(by_prompt),
            num_samples=tuple(map(len, groups)),
            num_tokens=tuple(sum(len(r.token_ids) for r in group) for group in groups),
            entropy_sums=tuple(map(_entropy_sum, groups)),
            num_passed=tuple(
                None if rewards is None else _num_passed([rewards[i] for i in indices], judging)
                for indices in by_prompt.values()
            ),
        ),
        sequential=sequential,
        samples_saved=(
            0 if sequential is None else sequential.samples_planned - sequential.samples_drawn
        ),
        **metrics,
    )


def kind_of(rollout: Rollout) -> str | None:
    """The kind of degenerate text that a rollout is, if any."""
    mean = float(rollout.entropies_nats.mean(dtype=float))
    return kind_of_degenerate(rollout.text, rollout.token_ids, mean)


def _num_passed(rewards: Sequence[float | None], judging: Judging) -> int | None:
    """How many rollouts of a prompt passed; None where the reward does not apply."""
    scores = [reward for reward in rewards if reward is not None]
    return sum(score >= judging.success_threshold for score in scores) if scores else None


def _entropy_sum(group: Sequence[Rollout]) -> float:
    return float(sum(rollout.entropies_nats.sum(dtype=float) for rollout in group))


def _unscored_prompts(prompts: int, metrics: Mapping[str, Any]) -> list[str]:
    scored = metrics.get("num_scored_prompts")
    if scored is None or scored == prompts:
        return []
    return [f"pass rates are over {scored} of {prompts} prompts: the reward is None for the others"]


def _unscored_metrics(groups: Sequence[Sequence[Rollout]], estimate: Estimates) -> dict[str, Any]:
    tokens = [float(sum(len(rollout.token_ids) for rollout in group)) for group in groups]
    counts = [float(len(group)) for group in groups]
    means = [[float(r.entropies_nats.mean(dtype=float)) for r in group] for group in groups]
    alike = None
    if min(counts) >= 2:
        alike = estimate.share("self_bleu", [self_bleu([r.token_ids for r in g]) for g in groups])
    return {
        "entropy_nats": estimate.ratio(
            "entropy_nats",
            list(map(_entropy_sum, groups)),
            tokens,
        ),
        "entropy_sequence_mean": estimate.ratio(
            "entropy_sequence_mean", [sum(group) for group in means], counts
        ),
        "entropy_sequence_p10": estimate.quantile("entropy_sequence_p10", means, 0.1),
        "entropy_sequence_p25": estimate.quantile("entropy_sequence_p25", means, 0.25),
        "unique_fraction": estimate.share(
            "unique_fraction", [unique_fraction([r.text for r in group]) for group in groups]
        ),
        "self_bleu": alike,
        "repetition": estimate.share(
            "repetition", [sum(repetition(r.token_ids) for r in g) / len(g) for g in groups]
        ),
        "mean_tokens": estimate.ratio("mean_tokens", tokens, counts),
        "truncated_fraction": estimate.share(
            "truncated_fraction", [sum(r.truncated for r in g) / len(g) for g in groups]
        ),
    }


def _histogram(rollouts: Sequence[Rollout]) -> Histogram:
    values = np.concatenate([rollout.entropies_nats for rollout in rollouts])
    counts, _ = np.histogram(
        values.clip(_HISTOGRAM_EDGES[0], _HISTOGRAM_EDGES[-1]), _HISTOGRAM_EDGES
    )
    return Histogram(_HISTOGRAM_EDGES, tuple(int(count) for count in counts))


def _example(
    rollouts: Sequence[Rollout],
    rewards: Sequence[float | None] | None,
    prompt_texts: Sequence[str],
    index: int,
) -> ExampleRollout:
    rollout = rollouts[index]
    return ExampleRollout(
        prompt_index=rollout.prompt_index,
        sample_index=rollout.sample_index,
        prompt=prompt_texts[rollout.prompt_index],
        text=rollout.text,
        num_tokens=len(rollout.token_ids),
        entropy_nats=float(rollout.entropies_nats.mean(dtype=float)),
        reward=None if rewards is None else rewards[index],
        truncated=rollout.truncated,
    )


def scored_metrics(
    rewards: Sequence[Sequence[float]], judging: Judging, estimate: Estimates
) -> dict[str, Any]:
    """Compute what needs a reward from the rewards of each prompt."""
    size, threshold = judging.group_size, judging.success_threshold
    counts = [(len(group), sum(value >= threshold for value in group)) for group in rewards]
    degenerate = [estimate_degenerate_fraction(n, c, size) for n, c in counts]
    shares = {
        "degenerate_fraction": [part.total for part in degenerate],
        "degenerate_all_wrong": [part.all_wrong for part in degenerate],
        "degenerate_all_right": [part.all_right for part in degenerate],
        "outcome_degenerate_fraction": [
            max(0.0, part.total - estimate_rewards_agree(group, size))
            for part, group in zip(degenerate, rewards, strict=True)
        ],
    }
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
        **{name: estimate.share(name, values) for name, values in shares.items()},
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
