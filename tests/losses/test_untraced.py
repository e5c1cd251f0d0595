"""A caller that torch.compile compiles gets the head's own numbers, to the bit."""

import pytest
import torch
from torch._dynamo.utils import counters

from entropyfloor_losses import linear_loss, linear_token_statistics, loss_by_name

SED = loss_by_name("sed", tau=0.5)
HEADS = {
    "linear_loss": lambda *of_head: linear_loss(*of_head, SED)[0],
    "linear_token_statistics": lambda *of_head: linear_token_statistics(*of_head).entropy.sum(),
}


@pytest.mark.slow  # torch's compiler is loaded
@pytest.mark.parametrize("name", HEADS)
def test_within_a_compiled_function(name):
    torch._dynamo.reset()
    counters.clear()
    labels = torch.arange(32) % 7 * 100

    def run(hidden, weight):
        return HEADS[name](torch.tanh(hidden), weight, labels)

    def gradients(function):
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(n, 64, generator=generator).requires_grad_() for n in (32, 2000)]
        function(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    compiled = torch.compile(run, backend="aot_eager")
    for ours, plain in zip(gradients(compiled), gradients(run), strict=True):
        assert ours.equal(plain)
    assert counters["stats"]["calls_captured"] >= 1
