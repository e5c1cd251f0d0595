"""No tensor of [N, V] elements, and exactly as many large matrix products as promised."""

import pytest
import torch
from cases import problem
from torch.utils._python_dispatch import TorchDispatchMode

from entropyfloor_losses import EntropyBonusLoss, SelectiveEntropyLoss, linear_loss

# Narrow, so that the weight itself (its views count too) is smaller than one chunk of logits.
TOKENS, WIDTH, VOCABULARY, CHUNK = 64, 3, 1001, 4


class Recorder(TorchDispatchMode):
    """Largest tensor made, and matrix products by name."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return out


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
    assert recorder.products == products * TOKENS // CHUNK
    assert recorder.largest == CHUNK * VOCABULARY
