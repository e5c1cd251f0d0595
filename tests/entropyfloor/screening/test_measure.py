import itertools
from dataclasses import replace

import numpy as np
import pytest

from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import TokenSums
from entropyfloor.screening.measure import measure_checkpoint
from entropyfloor.screening.options import Judging
from entropyfloor.stats.groups import p_star

JUDGING = Judging(group_size=2, ks=[1, 2, 3])


def rollout(prompt, sample, entropies, text="x", truncated=False):
    ids = tuple(range(len(entropies)))
    return Rollout(prompt, sample, ids, np.array(entropies, np.float32), text, truncated)


ROLLOUTS = [
    rollout(0, 0, [0.5, 0.5], "a"),
    rollout(0, 1, [1.0], "a"),
    rollout(0, 2, [0.0] * 5, "b", truncated=True),
    rollout(1, 0, [0.25, 0.75], "c"),
    rollout(1, 1, [0.5], "d"),
    rollout(1, 2, [0.5], "e"),
]
REWARDS = [1.0, 0.0, 2.0, 0.5, 0.0, 0.0]  # prompt 0: two of three pass; prompt 1: none


def measured(rollouts=ROLLOUTS, rewards=REWARDS, judging=JUDGING, **more):
    more = {"source": ("n", "p"), "prompt_texts": ["what?", "why?"], **more}
    return measure_checkpoint(rollouts, rewards, Sampling(), judging, **more)


def test_by_hand():
    result = measured()
    assert result.entropy_nats == pytest.approx((2.0 + 2.0) / 12)
    assert result.mean_tokens == 2.0
    assert result.truncated_fraction == pytest.approx(1 / 6)
    assert result.unique_fraction == pytest.approx((2 / 3 + 1.0) / 2)
    assert result.pass_at_1 == result.pass_at_k[1] == pytest.approx(1 / 3)
    assert result.pass_at_k[2] == result.pass_at_k[3] == pytest.approx(0.5)
    # Pairs of prompt 0: one of three is all right, none all wrong; all of prompt 1's are all wrong.
    assert result.degenerate_all_right == pytest.approx((1 / 3 + 0) / 2)
    assert result.degenerate_all_wrong == pytest.approx((0 + 1) / 2)
    assert result.degenerate_fraction == pytest.approx(2 / 3)
    pairs = list(itertools.combinations([1, 0, 1], 2))
    variance = sum(((a - b) / 2) ** 2 for a, b in pairs) / len(pairs)
    assert result.within_group_variance == pytest.approx((variance + 0.0) / 2)
    assert result.p_hat_over_p_star == pytest.approx(1 / 3 / p_star(2))
    assert result.mean_reward == pytest.approx((1.0 + 0.5 / 3) / 2)
    means = [0.5, 1.0, 0.0, 0.5, 0.5, 0.5]
    assert result.entropy_sequence_mean == pytest.approx(np.mean(means))
    assert result.entropy_sequence_p10 == pytest.approx(np.quantile(means, 0.1))
    assert result.entropy_sequence_p25 == pytest.approx(np.quantile(means, 0.25))
    assert result.per_prompt_pass_rates == pytest.approx((2 / 3, 0.0))
    assert result.degenerate_predicted_all_wrong == pytest.approx((2 / 3) ** 2)
    assert result.degenerate_predicted == pytest.approx((2 / 3) ** 2 + (1 / 3) ** 2)
    assert sum(result.token_entropy_histogram.counts) == 12
    assert result.token_entropy_histogram.counts[0] == 5
    assert (result.num_prompts, result.num_rollouts, result.num_scored_prompts) == (2, 6, 2)


def test_order_does_not_matter():
    order = [4, 0, 5, 2, 1, 3]
    shuffled = measured([ROLLOUTS[i] for i in order], [REWARDS[i] for i in order])
    assert shuffled == measured()


UNSCORED = {
    *("entropy_nats", "entropy_sequence_mean", "entropy_sequence_p10", "entropy_sequence_p25"),
    *(
        "junk_fraction",
        "mean_tokens",
        "repetition",
        "self_bleu",
        "truncated_fraction",
        "unique_fraction",
    ),
}
SCORED_TOO = UNSCORED | {
    *("degenerate_predicted", "degenerate_predicted_all_wrong", "degenerate_predicted_all_right"),
    *("degenerate_fraction", "degenerate_all_wrong", "degenerate_all_right", "pass_at_1"),
    *("within_group_variance", "p_hat_over_p_star", "mean_reward", "outcome_degenerate_fraction"),
}


def test_every_measure_has_an_interval_around_it():
    result = measured()
    values = {name: getattr(result, name, None) for name in SCORED_TOO}
    values["pass_at_3"] = result.pass_at_k[3]
    for name, value in values.items():
        low, high = result.intervals[name]
        assert low <= value <= high, name


def test_outcomes_that_agree_while_rewards_differ_are_counted_apart():
    shaped = measured(rewards=[1.0, 0.0, 1.0, 0.1, 0.2, 0.2])
    # Pairs of prompt 0: one of three agrees, in its rewards too; of prompt 1 all are all wrong, and
    # one of three has equal rewards.
    assert shaped.degenerate_fraction == pytest.approx((1 / 3 + 1) / 2)
    assert shaped.outcome_degenerate_fraction == pytest.approx((0 + 2 / 3) / 2)
    binary = measured(rewards=[1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert binary.outcome_degenerate_fraction == 0.0
    most = measured(rewards=[0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    assert "larger part of the 100% that have a gradient" in " ".join(most.notes)
    assert "larger part" not in " ".join(binary.notes)


def test_prompt_results_are_what_a_comparison_needs():
    found = measured(rewards=[None, None, None, 1.0, 1.0, 0.0]).prompt_results
    assert found.prompt_indices == (0, 1) and found.num_samples == (3, 3)
    assert found.num_tokens == (8, 4) and found.entropy_sums == (2.0, 2.0)
    assert found.num_passed == (None, 2)


def test_threshold_decides_what_passes():
    lower = replace(JUDGING, success_threshold=0.5)
    assert measured(judging=lower).pass_at_1 == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_without_reward_nothing_is_scored():
    result = measured(rewards=None)
    assert not result.has_reward
    assert result.pass_at_k == {}
    assert result.entropy_nats == measured().entropy_nats
    kept = {"degenerate_text", "degenerate_examples"}
    assert {k for k in result.to_dict() if "pass" in k or "degenerate" in k} == kept
    assert set(result.intervals) == UNSCORED


def test_prompts_that_the_reward_does_not_apply_to_are_left_out():
    result = measured(rewards=[None, None, None, 1.0, 1.0, 1.0])
    assert result.num_scored_prompts == 1
    assert result.pass_at_1 == 1.0
    assert result.num_prompts == 2
    with pytest.raises(ValueError, match="None for 1 of 3 rollouts of prompt 0"):
        measured(rewards=[None, 1.0, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="None for every prompt"):
        measured(rewards=[None] * 6)


def test_greedy_rollouts_count_for_greedy_pass_at_1_only():
    greedy = [replace(rollout(p, 0, [9.0], "g"), greedy=True) for p in range(2)]
    result = measured([*ROLLOUTS, *greedy], [*REWARDS, 1.0, 0.0])
    assert result.greedy_pass_at_1 == 0.5
    plain = measured()
    assert plain.greedy_pass_at_1 is None
    assert (result.entropy_nats, result.pass_at_k) == (plain.entropy_nats, plain.pass_at_k)
    assert result.num_rollouts == 6


def test_examples_show_the_first_prompts():
    shown = [(e.prompt_index, e.sample_index, e.prompt, e.reward) for e in measured().examples]
    assert shown == [
        (0, 0, "what?", 1.0),
        (0, 1, "what?", 0.0),
        (1, 0, "why?", 0.5),
        (1, 1, "why?", 0.0),
    ]


def test_teacher_forced_sums_become_means_with_intervals():
    sums = {"kl_to_base": TokenSums((1.0, 3.0), (10.0, 10.0))}
    result = measured(rewards=None, teacher_forced=sums)
    assert result.kl_to_base == pytest.approx(0.2)
    assert result.intervals["kl_to_base"].low < 0.2 < result.intervals["kl_to_base"].high


def test_a_measure_that_is_not_finite_is_left_out_and_said():
    sums = {"kl_to_base": TokenSums((1.0, float("inf")), (10.0, 10.0))}
    result = measured(rewards=None, teacher_forced=sums)
    assert result.kl_to_base is None and "kl_to_base" not in result.intervals
    assert "kl_to_base is left out" in result.notes[-1]


def test_verdict_is_part_of_the_record():
    assert measured().verdict == "undecided"
    flagged = measured([rollout(0, 0, [0.1]), rollout(1, 0, [0.0])], None)
    assert flagged.flagged
    assert "below tau_H" in flagged.reasons[0]
