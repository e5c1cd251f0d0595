"""Every loss on every engine equals the numpy reference: values and gradients, fp64, rtol 1e-9."""

import itertools

import numpy as np
import pytest
import torch
from reference import entropy, head_gradients, log_softmax, top_k_mass

from cases import HEADS, LOSSES, SCALES, SHAPES, head_arguments, problem
from entropyfloor_losses import (
    StatisticsRequest,
    linear_loss,
    linear_token_statistics,
    reduce_tokens,
    token_statistics,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def assert_close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, **CLOSE)


def with_gradients(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def statistics_of(engine, hidden, weight, bias, labels, request, head, chunk_size=None):
    if engine == "logits":
        raw = hidden @ weight.T + bias
        return token_statistics(raw, labels, request=request, **head_arguments(head))
    return linear_token_statistics(
        hidden,
        weight,
        labels,
        bias=bias,
        request=request,
        chunk_size=chunk_size,
        **head_arguments(head),
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_linear_loss_equals_reference(loss, head, scale):
    ours, reference = LOSSES[loss]
    for shape, chunk_size in itertools.product(SHAPES, (1, 3, None)):
        hidden, weight, bias, labels = problem(shape, SCALES[scale])
        total, _, *expected = head_gradients(
            *(t.numpy() for t in (hidden, weight, bias, labels)),
            reference,
            HEADS[head],
            np.ones(len(labels)),
        )
        inputs = with_gradients(hidden, weight, bias)
        value, _ = linear_loss(
            inputs[0],
            inputs[1],
            labels,
            ours,
            bias=inputs[2],
            chunk_size=chunk_size,
            **head_arguments(HEADS[head]),
        )
        # An upstream that is not 1, and the mean over tokens.
        (3.0 * value).backward()
        assert_close(value, total / len(labels))
        for tensor, gradient in zip(inputs, expected, strict=True):
            assert_close(tensor.grad, 3.0 * gradient / len(labels))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("engine", ["logits", "fused"])
def test_per_token_upstream_is_honoured(engine, loss, head, scale):
    ours, reference = LOSSES[loss]
    for shape in SHAPES:
        hidden, weight, bias, labels = problem(shape, SCALES[scale])
        upstream = np.linspace(-1.0, 2.0, len(labels))
        _, values, *expected = head_gradients(
            *(t.numpy() for t in (hidden, weight, bias, labels)), reference, HEADS[head], upstream
        )
        inputs = with_gradients(hidden, weight, bias)
        statistics = statistics_of(engine, *inputs, labels, ours.request, HEADS[head], chunk_size=4)
        per_token = ours(statistics)
        per_token.backward(torch.tensor(upstream))
        assert_close(per_token, values)
        for tensor, gradient in zip(inputs, expected, strict=True):
            assert_close(tensor.grad, gradient)


@pytest.mark.parametrize("engine", ["logits", "fused"])
@pytest.mark.parametrize("scale", SCALES)
def test_statistics_equal_reference(engine, scale):
    for shape, k in itertools.product(SHAPES, (1, 2, 7)):
        hidden, weight, bias, labels = problem(shape, SCALES[scale])
        request = StatisticsRequest(top_k=k, mean_log_prob=True, gem_beta=0.5)
        statistics = statistics_of(engine, hidden, weight, bias, labels, request, HEADS["plain"], 4)
        z = (hidden @ weight.T + bias).numpy()
        log_p, rows = log_softmax(z), np.arange(len(labels))
        q = np.exp(log_softmax(z / 0.5))
        assert_close(statistics.log_prob, log_p[rows, labels.numpy()])
        assert_close(statistics.entropy, entropy(z))
        assert_close(statistics.top_k_mass, top_k_mass(z, k))
        assert_close(statistics.mean_log_prob, log_p.mean(-1))
        assert_close(statistics.tempered_log_prob, (q * log_p).sum(-1))
        assert (statistics.is_top1.numpy() == (z.argmax(-1) == labels.numpy())).all()


@pytest.mark.parametrize(
    "subset", [s for n in range(4) for s in itertools.combinations(range(3), n)]
)
@pytest.mark.parametrize("engine", ["linear_loss", "linear_token_statistics"])
def test_each_subset_of_requires_grad(engine, subset):
    hidden, weight, bias, labels = problem(SHAPES[0], 2.0)
    ours, reference = LOSSES["bonus_selective"]
    inputs = [t.clone().requires_grad_(i in subset) for i, t in enumerate((hidden, weight, bias))]
    if engine == "linear_loss":
        total, _ = linear_loss(*inputs[:2], labels, ours, bias=inputs[2], num_items=1, chunk_size=5)
    else:
        statistics = linear_token_statistics(
            *inputs[:2], labels, bias=inputs[2], request=ours.request, chunk_size=5
        )
        total = reduce_tokens(ours(statistics), statistics.scored, num_items=1)
    assert total.requires_grad == bool(subset)
    if subset:
        total.backward()
    _, _, *expected = head_gradients(
        *(t.numpy() for t in (hidden, weight, bias, labels)),
        reference,
        HEADS["plain"],
        np.ones(len(labels)),
    )
    for i, (tensor, gradient) in enumerate(zip(inputs, expected, strict=True)):
        if i in subset:
            assert_close(tensor.grad, gradient)
        else:
            assert tensor.grad is None


def test_gradcheck_of_the_differentiable_operator():
    hidden, weight, bias, labels = problem((4, 3, 11), 1.5)
    labels[1] = -100
    request = StatisticsRequest(mean_log_prob=True)

    def operator(h, w, b):
        s = linear_token_statistics(
            h, w, labels, bias=b, request=request, softcap=3.0, chunk_size=2
        )
        return s.log_prob, s.entropy, s.mean_log_prob

    assert torch.autograd.gradcheck(operator, with_gradients(hidden, weight, bias))


def test_a_custom_callable_is_a_loss_too():
    hidden, weight, bias, labels = problem(SHAPES[0], 2.0)

    def focal(statistics):
        return -((1 - statistics.log_prob.exp()) ** 2) * statistics.log_prob

    fused, plain = with_gradients(hidden, weight, bias), with_gradients(hidden, weight, bias)
    linear_loss(fused[0], fused[1], labels, focal, bias=fused[2], chunk_size=4)[0].backward()
    statistics = token_statistics(plain[0] @ plain[1].T + plain[2], labels)
    focal(statistics).mean().backward()
    for a, b in zip(fused, plain, strict=True):
        assert_close(a.grad, b.grad.numpy())
