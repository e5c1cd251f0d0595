"""Everything that can be enumerated, against independent references in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from tabular import (
    TabularTask,
    expected_reward,
    identity_gap,
    kl,
    reward_gradient,
    sft_gradient,
    sft_loss,
    sft_optimum,
    tilted,
)

from entropyfloor.coupling.alignment import agreement
from entropyfloor.coupling.divergence import identity

X, A = 3, 5


def task(seed=0, rewards=None):
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.05

    weights, demonstrations = rows(X), rows(X, A)
    if rewards is None:
        rewards = (torch.rand(X, A, generator=generator) < 0.4).double()
    return TabularTask(
        weights / weights.sum(), demonstrations / demonstrations.sum(-1, keepdim=True), rewards
    )


def logits(seed):
    return torch.randn(X, A, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enumerated(z, t):
    """(weight, probability, demonstrated share, reward) of every prompt and answer, in numpy."""
    z = z.numpy()
    for x in range(X):
        e = np.exp(z[x])
        for a in range(A):
            yield (
                float(t.prompt_weights[x]),
                e[a] / e.sum(),
                float(t.demonstrations[x, a]),
                float(t.rewards[x, a]),
            )


def test_values_equal_enumeration():
    t, z, other = task(), logits(1), logits(2)
    rows, others = list(enumerated(z, t)), list(enumerated(other, t))
    loss = -sum(w * d * math.log(p) for w, p, d, _ in rows)
    reward = sum(w * p * r for w, p, _, r in rows)
    divergence = sum(
        w * p * math.log(p / q[1]) for (w, p, _, _), q in zip(rows, others, strict=True)
    )
    assert float(sft_loss(z, t)) == pytest.approx(loss, abs=1e-12)
    assert float(expected_reward(z, t)) == pytest.approx(reward, abs=1e-12)
    assert float(kl(z, other, t)) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "gradient"), [(sft_loss, sft_gradient), (expected_reward, reward_gradient)]
)
def test_gradients_equal_central_differences(value, gradient):
    t, z, step = task(), logits(1), 1e-6
    exact = gradient(z, t)
    for x, a in itertools.product(range(X), range(A)):
        up, down = z.clone(), z.clone()
        up[x, a] += step
        down[x, a] -= step
        slope = (value(up, t) - value(down, t)) / (2 * step)
        assert float(exact[x, a]) == pytest.approx(float(slope), abs=1e-9)


def test_a_group_gives_the_gradient_of_the_reward():
    """Leave-one-out advantages, over every possible group of two, are unbiased."""
    t, z = task(), logits(1)
    p = z.softmax(-1)
    result = torch.zeros_like(z)
    for x in range(X):
        for pair in itertools.product(range(A), repeat=2):
            chance = t.prompt_weights[x] * p[x, pair[0]] * p[x, pair[1]]
            for own, rival in (pair, pair[::-1]):
                advantage = t.rewards[x, own] - t.rewards[x, rival]
                score = torch.nn.functional.one_hot(torch.tensor(own), A) - p[x]
                result[x] += chance * advantage * score / 2
    torch.testing.assert_close(result, reward_gradient(z, t), rtol=0, atol=1e-14)


def test_cosine_of_enumerated_gradients():
    t, z = task(), logits(1)
    sft, rl = sft_gradient(z, t).flatten(), -reward_gradient(z, t).flatten()
    exact = float(sft @ rl / (sft.norm() * rl.norm()))
    blocks = torch.stack([sft, sft, rl, rl])  # blocks without noise
    agreed = agreement((blocks @ blocks.T).numpy())
    assert agreed.cosine == pytest.approx(exact, abs=1e-12)
    assert agreed.cosine_without_noise == pytest.approx(exact, abs=1e-12)
    assert agreed.sft_squared_norm == pytest.approx(float(sft @ sft), abs=1e-12)
    assert agreed.sft_signal == pytest.approx(1.0, abs=1e-12)
    assert agreed.interval == pytest.approx((exact, exact), abs=1e-9)
    # What a positive cosine promises: a small step for the reward lowers the SFT loss.
    after = sft_loss(z + 1e-4 * reward_gradient(z, t), t) - sft_loss(z, t)
    assert math.copysign(1, float(after)) == -math.copysign(1, exact)


@pytest.mark.parametrize("seed", range(5))
def test_the_identity_holds_at_an_optimum(seed):
    t = task(seed)
    best = sft_optimum(t)
    rl = tilted(best, t, 3.0) + 0.3 * logits(seed)
    rise = float(sft_loss(rl, t) - sft_loss(best, t))
    assert rise > 0.1
    assert abs(rise - float(kl(best, rl, t))) < 1e-8
    assert abs(float(identity_gap(best, rl, t))) < 1e-8
    assert float(sft_gradient(best, t).abs().max()) < 1e-12


def test_the_identity_fails_away_from_an_optimum_by_the_gap():
    t = task()
    for seed in range(5):
        start, rl = logits(seed), logits(seed + 10)
        rise = float(sft_loss(rl, t) - sft_loss(start, t))
        gap = rise - float(kl(start, rl, t))
        assert abs(gap) > 0.05
        assert gap == pytest.approx(float(identity_gap(start, rl, t)), abs=1e-12)
    # Away from an optimum RL can even lower the SFT loss, which no KL does.
    assert any(float(sft_loss(logits(s + 10), t) - sft_loss(logits(s), t)) < 0 for s in range(5))


def test_a_log_linear_policy_needs_no_realisability():
    """Stationary in shared features: the demonstrations are out of reach, the identity holds."""
    t = task()
    features = torch.randn(X, A, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(60):  # Newton
        loss = sft_loss(features @ theta, t)
        (gradient,) = torch.autograd.grad(loss, theta)
        hessian = torch.autograd.functional.hessian(lambda v: sft_loss(features @ v, t), theta)
        theta = (theta - torch.linalg.solve(hessian, gradient)).detach().requires_grad_()
    best = (features @ theta).detach()
    assert float((best.softmax(-1) - t.demonstrations).abs().max()) > 0.05
    inside = features @ (theta.detach() + torch.tensor([0.7, -1.1], dtype=torch.float64))
    assert abs(float(identity_gap(best, inside, t))) < 1e-8
    assert abs(float(identity_gap(best, tilted(best, t, 2.0), t))) > 1e-3  # outside its features


@pytest.mark.parametrize("optimum", [True, False])
def test_the_instrument_reads_the_same_identity(optimum):
    """`identity` on enumerated demonstrations and samples is exact."""
    t = task()
    start = sft_optimum(t) if optimum else logits(3)
    rl = tilted(start, t, 2.0)
    ratio = start.log_softmax(-1) - rl.log_softmax(-1)
    own = (start.softmax(-1) * ratio).sum(-1).tolist()
    parts = identity(
        (t.demonstrations * ratio).sum(-1).tolist(),
        own,  # one token per answer: the context is the prompt, whoever answers
        own,
        own,
        weights=t.prompt_weights.tolist(),
    )
    assert parts.rise == pytest.approx(float(sft_loss(rl, t) - sft_loss(start, t)), abs=1e-12)
    assert parts.kl == pytest.approx(float(kl(start, rl, t)), abs=1e-12)
    assert parts.gap == pytest.approx(float(identity_gap(start, rl, t)), abs=1e-12)
    assert parts.contexts == 0.0 and parts.tokens == pytest.approx(parts.gap, abs=1e-12)
    assert (abs(parts.gap) < 1e-8) == optimum


def test_a_constant_reward_never_falls():
    """Counterexample to "SFT after RL lowers the reward"."""
    constant = task(rewards=torch.full((X, A), 0.7, dtype=torch.float64))
    rl = logits(4)
    assert float(reward_gradient(rl, constant).abs().max()) < 1e-15
    for step in (0.1, 1.0, 10.0):
        after = rl - step * sft_gradient(rl, constant)
        assert float(sft_loss(after, constant)) < float(sft_loss(rl, constant))
        assert float(expected_reward(after, constant)) == pytest.approx(0.7, abs=1e-12)


def test_better_demonstrators_raise_the_reward():
    """A reward that is not constant is no help either: SFT may raise it."""
    t = task()
    better = TabularTask(
        t.prompt_weights, tilted(t.demonstrations.log(), t, 6.0).softmax(-1), t.rewards
    )
    rl = tilted(logits(4), t, 1.0)
    after = rl - 1.0 * sft_gradient(rl, better)
    assert float(expected_reward(after, better)) > float(expected_reward(rl, better)) + 0.01
