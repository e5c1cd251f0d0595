"""Low precision: the fused head's error is no worse than the naive same-dtype path's."""

import pytest
import torch

from cases import LOSSES, SCALES, problem
from entropyfloor_losses import linear_loss, reduce_tokens, token_statistics

# Room for a different summation order in the products: a tenth of the naive error plus four
# roundings.
SLACK, EPSILONS = 1.1, 4.0


def naive(loss, hidden, weight, labels):
    inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
    statistics = token_statistics(inputs[0] @ inputs[1].T, labels, request=loss.request)
    value = reduce_tokens(loss(statistics), statistics.scored)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def fused(loss, hidden, weight, labels):
    inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
    value, _ = linear_loss(inputs[0], inputs[1], labels, loss, chunk_size=16)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LOSSES)
def test_error_is_no_worse_than_the_naive_path(name, scale, dtype):
    loss = LOSSES[name][0]
    hidden, weight, _, labels = problem((64, 32, 1001), SCALES[scale])
    low = [t.to(dtype) for t in (hidden, weight)]
    # The truth for the rounded inputs: what is measured is the path, not the rounding of its
    # inputs.
    truth = naive(loss, *(t.double() for t in low), labels)
    for exact, ours, theirs in zip(
        truth, fused(loss, *low, labels), naive(loss, *low, labels), strict=True
    ):
        size = exact.norm().clamp(min=1e-30)
        error = (ours.double() - exact).norm() / size
        allowed = (theirs.double() - exact).norm() / size
        assert error <= SLACK * allowed + EPSILONS * torch.finfo(dtype).eps, (error, allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_of_results(dtype):
    hidden, weight, _, labels = problem((8, 4, 123), 1.0, dtype=dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    value, statistics = linear_loss(hidden, weight, labels, LOSSES["sed"][0])
    assert value.dtype == statistics.entropy.dtype == torch.float32
    value.backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_inputs():
    hidden, weight, _, labels = problem((64, 32, 1001), 1.0, dtype=torch.float32)
    loss = LOSSES["bonus"][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fused(loss, hidden, weight, labels)
    low = fused(loss, hidden.bfloat16(), weight.bfloat16(), labels)
    assert mixed[1].dtype == torch.float32
    torch.testing.assert_close(mixed[0], low[0], rtol=0, atol=0)
    torch.testing.assert_close(mixed[2], low[2].float(), rtol=1e-2, atol=1e-4)


def test_entropy_does_not_drift_when_products_are_accumulated_over_many_chunks():
    """The trap of rounding each chunk's weight gradient to bf16: errors grow with chunks."""
    hidden, weight, _, labels = problem((256, 32, 501), 1.0)
    low = [hidden.bfloat16(), weight.bfloat16()]
    truth = naive(LOSSES["ce"][0], *(t.double() for t in low), labels)[2]

    def error(chunk_size):
        inputs = [t.clone().requires_grad_() for t in low]
        linear_loss(inputs[0], inputs[1], labels, LOSSES["ce"][0], chunk_size=chunk_size)[
            0
        ].backward()
        return float((inputs[1].grad.double() - truth).norm() / truth.norm())

    assert error(1) <= 1.05 * error(256)
