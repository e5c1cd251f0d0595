"""No tensor of [N, V] elements, and exactly as much matrix multiplication as promised."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import problem
from entropyfloor_losses import EntropyBonusLoss, SelectiveEntropyLoss, linear_loss

# Narrow, so that the weight itself (its views count too) is smaller than one chunk of logits.
TOKENS, WIDTH, VOCABULARY, CHUNK = 64, 3, 1001, 4


# The two factors among an operator's arguments.
FACTORS = {
    torch.ops.aten.mm: lambda args: args[:2],
    torch.ops.aten.addmm_: lambda args: args[1:3],
    torch.ops.aten.mkldnn_linear: lambda args: args[:2],
}


class Recorder(TorchDispatchMode):
    """Largest tensor made, and the multiplications of all matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.multiplications = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        factors = FACTORS.get(function.overloadpacket, lambda args: ())(args)
        if factors:
            rows, inner = factors[0].shape
            self.multiplications += rows * inner * (factors[1].numel() // inner)
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
    assert recorder.multiplications == products * TOKENS * WIDTH * VOCABULARY
    assert recorder.largest == CHUNK * VOCABULARY
