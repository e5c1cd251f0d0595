"""No tensor of [N, V] elements, and exactly as much matrix multiplication as promised."""

import pytest
import torch
from products_recorder import Recorder

from cases import problem
from entropyfloor_losses import EntropyBonusLoss, SelectiveEntropyLoss, linear_loss

# Narrow, so that the weight itself (its views count too) is smaller than one chunk of logits.
TOKENS, WIDTH, VOCABULARY, CHUNK = 64, 3, 1001, 4


def record(hidden_grad, weight_grad, loss):
    hidden, weight, _, labels = problem((TOKENS, WIDTH, VOCABULARY), 1.0, dtype=torch.float32)
    hidden.requires_grad_(hidden_grad), weight.requires_grad_(weight_grad)
    with Recorder() as recorder:
        value, _ = linear_loss(hidden, weight, labels, loss, chunk_size=CHUNK)
        if value.requires_grad:
            value.backward()
    return recorder


@pytest.mark.parametrize("loss", [SelectiveEntropyLoss(tau=0.5), EntropyBonusLoss()])
@pytest.mark.parametrize(
    ("hidden_grad", "weight_grad", "products"),
    [(True, True, 3), (True, False, 2), (False, True, 2), (False, False, 1)],
)
def test_products_and_memory(loss, hidden_grad, weight_grad, products):
    recorder = record(hidden_grad, weight_grad, loss)
    assert recorder.multiplications == products * TOKENS * WIDTH * VOCABULARY
    assert recorder.largest == CHUNK * VOCABULARY
