"""Masks and weights that the papers detach carry no gradient: red without the detach."""

import numpy as np
import pytest
import torch

from entropyfloor_losses import (
    BoundedProbabilityLoss,
    DynamicEntropyLoss,
    EntropyAdaptiveLoss,
    EntropyBonusLoss,
    GEMLoss,
    SelectiveEntropyLoss,
    TokenStatistics,
    token_statistics,
)


def logits_with_gradient(seed=0):
    torch.manual_seed(seed)
    return (2 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("tau", [0.7, 2.0])
def test_dcr_weight_is_a_constant(tau):
    z = logits_with_gradient()
    labels = torch.arange(6)
    statistics = token_statistics(z, labels)
    BoundedProbabilityLoss(tau=tau)(statistics).sum().backward()
    p = statistics.log_prob.detach().exp()
    weight = torch.where(p < tau, p, torch.ones_like(p))
    expected = weight[:, None] * (z.detach().softmax(-1) - torch.eye(9, dtype=z.dtype)[labels])
    np.testing.assert_allclose(z.grad, expected, rtol=1e-9, atol=1e-12)


def test_gem_q_is_a_constant():
    z = logits_with_gradient()
    labels = torch.arange(6)
    loss = GEMLoss(beta=0.7)
    loss(token_statistics(z, labels, request=loss.request)).sum().backward()
    expected = (z.detach() / 0.7).softmax(-1) - torch.eye(9, dtype=z.dtype)[labels]
    np.testing.assert_allclose(z.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "loss", [SelectiveEntropyLoss(tau=0.9), EntropyBonusLoss(selective=True, tau=0.9)]
)
def test_masks_send_no_gradient_to_the_top_k_mass(loss):
    values = {
        name: torch.rand(5, dtype=torch.float64).requires_grad_()
        for name in ("log_prob", "entropy", "top_k_mass")
    }
    scored = torch.ones(5, dtype=torch.bool)
    loss(TokenStatistics(**values, is_top1=scored, scored=scored)).sum().backward()
    assert values["top_k_mass"].grad is None
    assert values["log_prob"].grad.abs().min() > 0


@pytest.mark.parametrize(
    ("loss", "weight"),
    [(EntropyAdaptiveLoss(), "top_k_entropy"), (DynamicEntropyLoss(), "collision_prob")],
)
def test_weights_are_constants(loss, weight):
    values = {n: torch.rand(5, dtype=torch.float64).requires_grad_() for n in ("log_prob", weight)}
    scored = torch.ones(5, dtype=torch.bool)
    loss(TokenStatistics(**values, scored=scored)).sum().backward()
    assert values[weight].grad is None
    assert values["log_prob"].grad.abs().min() > 0


def test_top_k_mass_and_top1_are_not_differentiable():
    statistics = token_statistics(logits_with_gradient(), torch.arange(6))
    assert statistics.log_prob.requires_grad and statistics.entropy.requires_grad
    assert not statistics.top_k_mass.requires_grad and not statistics.is_top1.requires_grad
