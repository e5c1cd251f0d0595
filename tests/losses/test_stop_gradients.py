"""Masks and weights that the papers detach carry no gradient: red without the detach.

Those of DCR and GEM go red in the grid of ``test_values_and_gradients.py``, whose references hold
them constant.
"""

import pytest
import torch

from entropyfloor_losses import (
    DynamicEntropyLoss,
    EntropyAdaptiveLoss,
    EntropyBonusLoss,
    SelectiveEntropyLoss,
    TokenStatistics,
    token_statistics,
)


def logits_with_gradient(seed=0):
    torch.manual_seed(seed)
    return (2 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (SelectiveEntropyLoss(tau=0.9), "top_k_mass"),
        (EntropyBonusLoss(selective=True, tau=0.9), "top_k_mass"),
        (EntropyAdaptiveLoss(), "top_k_entropy"),
        (DynamicEntropyLoss(), "collision_prob"),
    ],
)
def test_masks_and_weights_are_constants(loss, weight):
    values = {
        name: torch.rand(5, dtype=torch.float64).requires_grad_()
        for name in ("log_prob", "entropy", weight)
    }
    scored = torch.ones(5, dtype=torch.bool)
    loss(TokenStatistics(**values, scored=scored)).sum().backward()
    assert values[weight].grad is None
    assert values["log_prob"].grad.abs().min() > 0


def test_top_k_mass_and_top1_are_not_differentiable():
    statistics = token_statistics(logits_with_gradient(), torch.arange(6))
    assert statistics.log_prob.requires_grad and statistics.entropy.requires_grad
    assert not statistics.top_k_mass.requires_grad and not statistics.is_top1.requires_grad
