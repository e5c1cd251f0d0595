"""Group advantages and GFT's loss against numpy written from the paper, and GFT's exact limits."""

import numpy as np
import pytest
import torch
from reference import _parts

from cases import HEADS, SCALES, SHAPES, head_arguments, problem
from entropyfloor_losses import (
    BoundedProbabilityLoss,
    CrossEntropyLoss,
    GroupFineTuningLoss,
    group_advantages,
    linear_loss,
    linear_token_statistics,
    token_statistics,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def reference_advantages(rewards, ids, scale=True, ddof=0, eps=1e-4):
    found = np.zeros(len(rewards))
    for group in set(ids.tolist()):
        members = np.flatnonzero(ids == group)
        inside = rewards[members]
        if (inside == inside[0]).all():
            continue
        found[members] = inside - inside.mean()
        if scale:
            found[members] /= inside.std(ddof=ddof) + eps
    return found


def gft(z, y, advantages, tau):
    _, p, lp, e = _parts(z, y)
    c = np.where(np.exp(lp) < tau, np.exp(lp), 1.0)
    return -advantages * c * lp, (advantages * c)[:, None] * (p - e)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"ddof": 1}, {"eps": 0.0}])
def test_ragged_groups_in_any_order(options):
    rng = np.random.default_rng(0)
    for seed in range(20):
        ids = rng.integers(-3, 4, size=23) * 10
        rewards = rng.choice([0.0, 0.1, 1.0, 2.5], size=23)
        if seed % 2:
            rewards = (rewards > 0.5).astype(float)
        found = group_advantages(torch.tensor(rewards), torch.tensor(ids), **options)
        wanted = reference_advantages(rewards, ids, **options)
        np.testing.assert_allclose(found.advantages.numpy(), wanted, **CLOSE)
        groups = {g: rewards[ids == g] for g in set(ids.tolist())}
        flat = {g for g, inside in groups.items() if (inside == inside[0]).all()}
        assert found.num_groups == len(groups)
        assert found.num_degenerate == len(flat)
        assert found.degenerate.tolist() == [i in flat for i in ids.tolist()]


def test_equal_rewards_are_exactly_zero():
    """The mean of three 0.1 differs from each by rounding; the advantage must not."""
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    found = group_advantages(rewards, torch.zeros(3, dtype=torch.long), eps=0.0)
    assert (found.advantages == 0).all()
    assert (found.num_groups, found.num_degenerate) == (1, 1)


def test_a_group_of_one_is_degenerate_and_no_responses_are_no_groups():
    found = group_advantages(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([7, 8, 8]), ddof=1)
    assert found.advantages[0] == 0
    assert found.degenerate.tolist() == [True, False, False]
    empty = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert (empty.num_groups, len(empty.advantages)) == (0, 0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tau", [0.0, 0.7, float("inf")])
def test_the_whole_update(tau, head, scale):
    """Advantages, coefficients and gradients of a ragged batch with a degenerate group."""
    loss = GroupFineTuningLoss(tau=tau)
    for shape in SHAPES:
        hidden, weight, bias, labels = problem(shape, SCALES[scale])
        tokens = shape[0]
        response = np.arange(tokens) * 5 // tokens  # five responses, several tokens each
        rewards, ids = np.array([1.0, 0.0, 0.25, 1.0, 1.0]), np.array([0, 0, 0, 1, 1])
        advantages = reference_advantages(rewards, ids)[response]
        given = group_advantages(torch.tensor(rewards), torch.tensor(ids)).advantages[response]
        raw = (hidden @ weight.T + bias).numpy()
        value, slope = gft(HEADS[head].logits(raw), labels.numpy(), advantages, tau)
        g = slope * HEADS[head].derivative(raw) / tokens
        for chunk_size in (2, None):
            inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
            total, statistics = linear_loss(
                inputs[0],
                inputs[1],
                labels,
                loss,
                bias=inputs[2],
                advantages=given,
                chunk_size=chunk_size,
                **head_arguments(HEADS[head]),
            )
            total.backward()
            np.testing.assert_allclose(total.item(), value.mean(), **CLOSE)
            expected = (g @ weight.numpy(), g.T @ hidden.numpy(), g.sum(0))
            for tensor, gradient in zip(inputs, expected, strict=True):
                np.testing.assert_allclose(tensor.grad.numpy(), gradient, **CLOSE)
            np.testing.assert_allclose(statistics.advantage.numpy(), advantages, **CLOSE)


def test_engines_agree_and_ignored_tokens_count_nothing():
    hidden, weight, _, labels = problem(SHAPES[0], 2.0)
    labels[::4] = -100
    advantages = torch.linspace(-1, 2, len(labels), dtype=torch.float64)
    loss = GroupFineTuningLoss()
    on_logits = loss(token_statistics(hidden @ weight.T, labels, advantages=advantages))
    fused = loss(linear_token_statistics(hidden, weight, labels, advantages=advantages))
    torch.testing.assert_close(fused, on_logits)
    assert (fused[::4] == 0).all()


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (GroupFineTuningLoss(tau=0.0), CrossEntropyLoss()),
        (GroupFineTuningLoss(tau=float("inf")), BoundedProbabilityLoss(tau=float("inf"))),
        (GroupFineTuningLoss(tau=0.5), BoundedProbabilityLoss(tau=0.5)),
    ],
)
def test_limits_at_advantage_one(ours, other):
    hidden, weight, _, labels = problem(SHAPES[0], 2.0)
    ones = torch.ones(len(labels), dtype=torch.float64)
    statistics = token_statistics(hidden @ weight.T, labels, advantages=ones)
    assert torch.equal(ours(statistics), other(statistics))


def test_self_samples_alone_are_a_policy_gradient():
    """On all responses of a tabular policy, weighted by their probability: d E[A] / d logits."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(6, dtype=torch.float64)
    exact = torch.autograd.grad((logits.softmax(0) * advantages).sum(), logits)[0]
    probability = logits.softmax(0).detach()
    statistics = token_statistics(logits.expand(6, 6), torch.arange(6), advantages=advantages)
    estimate = (probability * GroupFineTuningLoss(tau=0.0)(statistics)).sum()
    torch.testing.assert_close(torch.autograd.grad(-estimate, logits)[0], exact)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: group_advantages(torch.ones(3), torch.zeros(2, dtype=torch.long)), "one entry"),
        (lambda: group_advantages(torch.ones(2), torch.zeros(2)), "must be integers"),
        (
            lambda: group_advantages(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0])),
            "NaN or infinite",
        ),
        (
            lambda: group_advantages(torch.ones(2), torch.tensor([0, 0]), ddof=2),
            "ddof is 2",
        ),
        (lambda: GroupFineTuningLoss(tau=-1.0), "tau is -1.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_advantages():
    hidden, weight, _, labels = problem(SHAPES[2], 2.0)
    with pytest.raises(ValueError, match="weights tokens by advantages"):
        linear_loss(hidden, weight, labels, GroupFineTuningLoss())
    with pytest.raises(ValueError, match="one advantage per label"):
        linear_loss(hidden, weight, labels, GroupFineTuningLoss(), advantages=torch.ones(2))
    with pytest.raises(ValueError, match="advantages hold NaN"):
        linear_loss(
            hidden, weight, labels, GroupFineTuningLoss(), advantages=torch.full((5,), torch.nan)
        )
