"""A net so small that its rollouts can be enumerated: the screen against the exact numbers."""

import numpy as np
import pytest
from enumerable_model import LENGTH, PROMPTS, enumerable_net, enumerate_rollouts, passes

from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import Rollout, generate_rollouts
from entropyfloor.screening.measure import measure_checkpoint
from entropyfloor.screening.options import Judging
from entropyfloor.stats.groups import p_star

SAMPLES = 8
JUDGING = Judging(group_size=SAMPLES, ks=[1, 8])


@pytest.fixture(scope="module")
def net():
    return enumerable_net()


@pytest.fixture(scope="module")
def enumerated(net):
    return enumerate_rollouts(net)


def test_entropy_equals_enumeration_and_the_batch_does_not_matter(net, enumerated):
    requests = [(p, s) for p in range(0, len(PROMPTS), 5) for s in range(4)]
    by_size = []
    for batch_size in (1, 3, 16):
        settings = Sampling(max_new_tokens=LENGTH, batch_size=batch_size)
        batches = generate_rollouts(net, PROMPTS, requests, settings)
        by_size.append({(r.prompt_index, r.sample_index): r for b in batches for r in b})
    worst = 0.0
    for key in requests:
        rollout = by_size[0][key]
        exact = enumerated[key[0]]
        expected = exact.entropies[exact.ids.index(rollout.token_ids)]
        worst = max(worst, float(np.abs(rollout.entropies_nats - expected).max()))
        for other in by_size[1:]:
            assert other[key].token_ids == rollout.token_ids
            assert np.array_equal(other[key].entropies_nats, rollout.entropies_nats)
    print(f"\nlargest distance from enumeration: {worst:.1e} nats")
    assert worst < 1e-5


NAMED = {"source": ("n", "n"), "prompt_texts": [""] * len(PROMPTS)}


def test_measures_approach_their_exact_values(net, enumerated):
    """All 216 prompts, 40 rollouts each, drawn by the screen's own sampler."""
    requests = [(p, s) for p in range(len(PROMPTS)) for s in range(40)]
    settings = Sampling(max_new_tokens=LENGTH, batch_size=2160)
    rollouts = [r for b in generate_rollouts(net, PROMPTS, requests, settings) for r in b]
    rewards = [passes(r.token_ids) for r in rollouts]
    found = measure_checkpoint(rollouts, rewards, settings, JUDGING, **NAMED)
    truth = exact_values(enumerated)
    assert found.entropy_nats == pytest.approx(truth["entropy_nats"], rel=0.02)
    assert found.pass_at_1 == pytest.approx(truth["pass_at_1"], abs=0.02)
    assert found.pass_at_k[8] == pytest.approx(truth["pass_at_8"], abs=0.02)
    assert found.degenerate_fraction == pytest.approx(truth["degenerate_fraction"], abs=0.02)


def exact_values(enumerated):
    """The measures over the population of prompts, without sampling."""
    nats = [
        sum(m * e.sum() for m, e in zip(x.probabilities, x.entropies, strict=True))
        for x in enumerated
    ]
    tokens = [
        sum(m * len(i) for m, i in zip(x.probabilities, x.ids, strict=True)) for x in enumerated
    ]
    rate = np.array(
        [
            sum(m * passes(i) for m, i in zip(x.probabilities, x.ids, strict=True))
            for x in enumerated
        ]
    )
    return {
        "entropy_nats": sum(nats) / sum(tokens),
        "mean_tokens": float(np.mean(tokens)),
        "pass_at_1": rate.mean(),
        "pass_at_8": (1 - (1 - rate) ** 8).mean(),
        "degenerate_fraction": (rate**8 + (1 - rate) ** 8).mean(),
        "within_group_variance": (rate * (1 - rate)).mean() * 7 / 8,
        "p_hat_over_p_star": rate.mean() / p_star(8),
    }


def test_coverage_of_the_intervals(enumerated, prompts=48):
    """Screenings of prompts drawn from the population; rollouts from their exact distribution."""
    truth = exact_values(enumerated)
    rng = np.random.default_rng(1)
    runs = 1000
    covered = dict.fromkeys(truth, 0)
    cache = [[np.float32(e) for e in x.entropies] for x in enumerated]
    for run in range(runs):
        rollouts, rewards = [], []
        for index, prompt in enumerate(rng.integers(len(PROMPTS), size=prompts)):
            exact = enumerated[prompt]
            drawn = rng.choice(len(exact.ids), size=SAMPLES, p=exact.probabilities)
            for sample, which in enumerate(drawn):
                ids = exact.ids[which]
                rollouts.append(Rollout(index, sample, ids, cache[prompt][which], "", False))
                rewards.append(passes(ids))
        intervals = _intervals(rollouts, rewards, seed=run)
        for name, value in truth.items():
            covered[name] += intervals[name].low <= value <= intervals[name].high
    shares = {name: count / runs for name, count in covered.items()}
    print(f"\ncoverage, {prompts} prompts: {shares}")
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def _intervals(rollouts, rewards, *, seed):
    """measure_checkpoint's intervals, without the measures that take long (self-BLEU)."""
    from entropyfloor.screening.measure import Estimates, scored_metrics

    estimate = Estimates(seed)
    groups = [rollouts[i : i + SAMPLES] for i in range(0, len(rollouts), SAMPLES)]
    tokens = [float(sum(len(r.token_ids) for r in g)) for g in groups]
    sums = [float(sum(r.entropies_nats.sum(dtype=float) for r in g)) for g in groups]
    estimate.ratio("entropy_nats", sums, tokens)
    estimate.ratio("mean_tokens", tokens, [float(SAMPLES)] * len(groups))
    scored = [rewards[i : i + SAMPLES] for i in range(0, len(rewards), SAMPLES)]
    scored_metrics(scored, JUDGING, estimate)
    return estimate.intervals
