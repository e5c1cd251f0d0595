"""Entropy terms, and losses that compare with a reference model, against numpy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from reference import Head, _parts, asft, entropy_bonus, gift, log_softmax, psft, top_k_entropy

from cases import HEADS, SCALES, SHAPES, head_arguments, problem
from entropyfloor_losses import (
    PLACES,
    AnchoredLoss,
    CrossEntropyLoss,
    EntropyTerm,
    GibbsLoss,
    PenalisedLoss,
    ProximalLoss,
    ReferenceHead,
    ReferenceTopK,
    SelectiveEntropyLoss,
    StatisticsRequest,
    linear_loss,
    linear_token_statistics,
    token_statistics,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
WEIGHT = 0.7


def ce_plus(term_value, term_slope, z, y):
    _, p, lp, e = _parts(z, y)
    return -lp + WEIGHT * term_value, p - e + WEIGHT * term_slope


def anchor(z, y, zb):
    p, b = np.exp(log_softmax(z)), np.exp(log_softmax(zb))
    value = (b * (log_softmax(zb) - log_softmax(z))).sum(-1)
    return ce_plus(value, p - b, z, y)


def uniform(z, y, zb):
    return entropy_bonus(z, y, WEIGHT)


def bonus_of_top_k(z, y, zb):
    value, slope = top_k_entropy(z, k=4)
    return ce_plus(-value, -slope, z, y)


class TopKEntropyLoss:
    """Cross-entropy and the entropy of the four most likely tokens: a statistic no loss uses."""

    request = StatisticsRequest(top_k_entropy=4)

    def __call__(self, statistics):
        return -statistics.log_prob - WEIGHT * statistics.top_k_entropy


LOSSES = {
    place: PenalisedLoss(CrossEntropyLoss(), EntropyTerm(place), WEIGHT) for place in PLACES
} | {
    "top_k_entropy": TopKEntropyLoss(),
    "gift": GibbsLoss(),
    "gift_mild": GibbsLoss(beta=1.5),
    "asft": AnchoredLoss(lam=0.3),
    "psft": ProximalLoss(),
}
REFERENCES = {
    "anchor": anchor,
    "onset_anchor": anchor,  # the same term to another model
    "uniform": uniform,
    "top_k_entropy": bonus_of_top_k,
    "gift": partial(gift, beta=20.0),
    "gift_mild": partial(gift, beta=1.5),
    "asft": partial(asft, lam=0.3),
    "psft": partial(psft, epsilon_high=0.28),
}


def reference_for(name, reference):
    return ReferenceHead(*reference) if LOSSES[name].request.needs_reference else None


def reference_problem(shape, scale, width=5):
    """Another model at the same positions: its own width, close to the first in no way."""
    rng = np.random.default_rng(7)
    hidden = rng.normal(size=(shape[0], width))
    weight = rng.normal(size=(shape[2], width)) * scale / np.sqrt(width)
    bias = rng.normal(size=shape[2]) * scale / 4
    return tuple(torch.tensor(x) for x in (hidden, weight, bias))


def expected(name, head: Head, tensors, reference, upstream):
    hidden, weight, bias, labels = (t.numpy() for t in tensors)
    raw = hidden @ weight.T + bias
    raw_reference = reference[0].numpy() @ reference[1].numpy().T + reference[2].numpy()
    value, slope = REFERENCES[name](head.logits(raw), labels, head.logits(raw_reference))
    g = upstream[:, None] * slope * head.derivative(raw)
    return value, (g @ weight, g.T @ hidden, g.sum(0))


def assert_close(actual, wanted):
    np.testing.assert_allclose(actual.detach().numpy(), wanted, **CLOSE)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", LOSSES)
def test_linear_loss(name, head, scale):
    for shape in SHAPES:
        tensors, reference = problem(shape, SCALES[scale]), reference_problem(shape, SCALES[scale])
        loss = LOSSES[name]
        value, gradients = expected(name, HEADS[head], tensors, reference, np.ones(shape[0]))
        for chunk_size in (1, 4, None):
            hidden, weight, bias = (t.clone().requires_grad_() for t in tensors[:3])
            total, _ = linear_loss(
                hidden,
                weight,
                tensors[3],
                loss,
                bias=bias,
                num_items=1,
                reference=reference_for(name, reference),
                chunk_size=chunk_size,
                **head_arguments(HEADS[head]),
            )
            total.backward()
            assert_close(total, value.sum())
            for tensor, gradient in zip((hidden, weight, bias), gradients, strict=True):
                assert_close(tensor.grad, gradient)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("engine", ["logits", "fused"])
@pytest.mark.parametrize("name", LOSSES)
def test_per_token_upstream(name, engine, scale):
    head = HEADS["all"]
    for shape in SHAPES:
        tensors, reference = problem(shape, SCALES[scale]), reference_problem(shape, SCALES[scale])
        loss = LOSSES[name]
        upstream = np.linspace(-1.0, 2.0, shape[0])
        value, gradients = expected(name, head, tensors, reference, upstream)
        hidden, weight, bias = (t.clone().requires_grad_() for t in tensors[:3])
        reference_of = reference_for(name, reference)
        if engine == "logits":
            statistics = token_statistics(
                hidden @ weight.T + bias,
                tensors[3],
                request=loss.request,
                reference_logits=reference_of and reference[0] @ reference[1].T + reference[2],
                **head_arguments(head),
            )
        else:
            statistics = linear_token_statistics(
                hidden,
                weight,
                tensors[3],
                bias=bias,
                request=loss.request,
                reference=reference_of,
                chunk_size=4,
                **head_arguments(head),
            )
        per_token = loss(statistics)
        per_token.backward(torch.tensor(upstream))
        assert_close(per_token, value)
        for tensor, gradient in zip((hidden, weight, bias), gradients, strict=True):
            assert_close(tensor.grad, gradient)


def test_kl_to_itself_is_zero_and_ignored_tokens_are_left_out():
    hidden, weight, _, labels = problem(SHAPES[0], 2.0)
    labels[::3] = -100
    request = StatisticsRequest(reference_kl=True)
    statistics = linear_token_statistics(
        hidden, weight, labels, request=request, reference=ReferenceHead(hidden, weight)
    )
    assert statistics.reference_kl.abs().max() < 1e-12
    moved = linear_token_statistics(
        hidden, weight, labels, request=request, reference=ReferenceHead(hidden * 0.5, weight)
    )
    assert (moved.reference_kl[labels == -100] == 0).all()
    assert (moved.reference_kl[labels != -100] > 0).all()


def buckets(z, y, zb, k):
    """KL of k + 1 events: the reference's k most likely tokens, and any other."""
    p, b = np.exp(log_softmax(z)), np.exp(log_softmax(zb))
    inside = np.zeros(z.shape, dtype=bool)
    np.put_along_axis(inside, np.argsort(zb, axis=-1)[:, -k:], True, axis=-1)
    rest_b = np.where(inside, 0, b).sum(-1)
    rest_p = np.where(inside, 0, p).sum(-1)
    value = np.where(inside, b * (log_softmax(zb) - log_softmax(z)), 0).sum(-1)
    value += rest_b * np.log(rest_b / rest_p)
    return ce_plus(value, np.where(inside, p - b, p * (1 - (rest_b / rest_p)[:, None])), z, y)


def top_k_of(reference, head, k):
    raw = reference[0] @ reference[1].T + reference[2]
    log_b = torch.tensor(log_softmax(head.logits(raw.numpy())))
    return ReferenceTopK(*reversed(log_b.topk(k, dim=-1)))


@pytest.mark.parametrize("scale", ["flat", "ordinary"])
@pytest.mark.parametrize("head", ["plain", "all"])
@pytest.mark.parametrize("k", [1, 8, 64])
def test_the_base_by_its_most_likely_tokens(k, head, scale):
    for shape in SHAPES:
        tensors, reference = problem(shape, SCALES[scale]), reference_problem(shape, SCALES[scale])
        loss = PenalisedLoss(CrossEntropyLoss(), EntropyTerm("anchor"), WEIGHT)
        raw = (tensors[0] @ tensors[1].T + tensors[2]).numpy()
        raw_reference = (reference[0] @ reference[1].T + reference[2]).numpy()
        value, slope = buckets(
            HEADS[head].logits(raw), tensors[3].numpy(), HEADS[head].logits(raw_reference), k
        )
        g = slope * HEADS[head].derivative(raw)
        for chunk_size in (3, None):
            inputs = [t.clone().requires_grad_() for t in tensors[:3]]
            total, statistics = linear_loss(
                inputs[0],
                inputs[1],
                tensors[3],
                loss,
                bias=inputs[2],
                num_items=1,
                reference=top_k_of(reference, HEADS[head], k),
                chunk_size=chunk_size,
                **head_arguments(HEADS[head]),
            )
            total.backward()
            assert_close(total, value.sum())
            expected_gradients = (g @ tensors[1].numpy(), g.T @ tensors[0].numpy(), g.sum(0))
            for tensor, gradient in zip(inputs, expected_gradients, strict=True):
                assert_close(tensor.grad, gradient)
            full = linear_token_statistics(
                *tensors[:2],
                tensors[3],
                bias=tensors[2],
                request=loss.request,
                reference=ReferenceHead(*reference),
                **head_arguments(HEADS[head]),
            )
            # Merging events cannot raise a divergence.
            assert (statistics.reference_kl <= full.reference_kl + 1e-12).all()


@pytest.mark.parametrize("name", ["gift_mild", "asft", "psft"])
def test_losses_from_a_cache_of_the_whole_vocabulary_are_exact(name):
    shape = SHAPES[1]
    tensors, reference = problem(shape, 2.0), reference_problem(shape, 2.0)
    value, gradients = expected(name, HEADS["plain"], tensors, reference, np.ones(shape[0]))
    few = top_k_of(reference, HEADS["plain"], shape[2])
    log_b = torch.tensor(log_softmax((reference[0] @ reference[1].T + reference[2]).numpy()))
    cached = ReferenceTopK(few.indices, few.log_probs, log_b.gather(1, tensors[3][:, None])[:, 0])
    inputs = [t.clone().requires_grad_() for t in tensors[:3]]
    total, _ = linear_loss(
        *inputs[:2], tensors[3], LOSSES[name], bias=inputs[2], num_items=1, reference=cached
    )
    total.backward()
    assert_close(total, value.sum())
    for tensor, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(tensor.grad, gradient, rtol=1e-7, atol=1e-8)


def test_a_peaked_base_whose_rest_is_nothing():
    """All probability inside the k tokens, in fp32: finite values and gradients."""
    hidden, weight, _, labels = problem((9, 4, 385), 30.0, dtype=torch.float32)
    hidden.requires_grad_()
    log_b = (hidden.detach() @ weight.T).log_softmax(-1)
    top_k = ReferenceTopK(*reversed(log_b.topk(16, dim=-1)))
    loss = PenalisedLoss(CrossEntropyLoss(), EntropyTerm("anchor"), 1.0)
    total, statistics = linear_loss(hidden, weight, labels, loss, reference=top_k)
    total.backward()
    assert statistics.reference_kl.abs().max() < 1e-5
    assert torch.isfinite(hidden.grad).all()


def test_masked_vocabulary_of_the_base():
    """The reference rules tokens out: the forward KL is that of the rest, without NaN."""
    hidden, weight, _, labels = problem(SHAPES[2], 2.0)
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    bias[10:20] = -torch.inf
    statistics = linear_token_statistics(
        hidden,
        weight,
        labels,
        request=StatisticsRequest(reference_kl=True),
        reference=ReferenceHead(hidden, weight, bias),
    )
    log_p = (hidden @ weight.T).log_softmax(-1)
    log_b = (hidden @ weight.T + bias).log_softmax(-1)
    kept = torch.isfinite(bias)
    wanted = (log_b.exp() * (log_b - log_p))[:, kept].sum(-1)
    torch.testing.assert_close(statistics.reference_kl, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_no_worse_than_full_logits(dtype):
    for scale in SCALES.values():
        hidden, weight, _, labels = problem((64, 32, 1001), scale)
        other = hidden + 0.1 * hidden.flip(0)
        low = [t.to(dtype) for t in (hidden, weight, other)]
        request = StatisticsRequest(reference_kl=True)

        def full(h, w, o, labels=labels, request=request):
            return token_statistics(
                h @ w.T, labels, request=request, reference_logits=o @ w.T
            ).reference_kl

        exact = full(*(t.double() for t in low))
        ours = linear_token_statistics(
            low[0], low[1], labels, request=request, reference=ReferenceHead(low[2], low[1])
        ).reference_kl
        naive = full(*low)
        error, allowed = ((x.double() - exact).norm() for x in (ours, naive))
        # The statistics are fp32, and a KL is the difference of numbers of the size of log V.
        rounding = torch.finfo(torch.float32).eps * math.log(1001) * len(labels) ** 0.5
        assert error <= 1.1 * allowed + rounding


def test_weight_zero_is_the_loss_alone_and_asks_for_no_base():
    loss = PenalisedLoss(SelectiveEntropyLoss(tau=0.7, top_k=3), EntropyTerm("anchor"), 0.0)
    assert loss.request == StatisticsRequest(top_k=3)
    hidden, weight, _, labels = problem(SHAPES[0], 2.0)
    statistics = token_statistics(hidden @ weight.T, labels, request=loss.request)
    assert torch.equal(loss(statistics), loss.loss(statistics))
    assert torch.equal(loss.selected(statistics), loss.loss.selected(statistics))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyTerm("everywhere"), "choose one of anchor"),
        (lambda: StatisticsRequest(top_k_entropy=1), "top_k_entropy is 1"),
        (
            lambda: StatisticsRequest(reference_kl="forward"),
            "reference_kl is 'forward'; it must be True",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_bases():
    hidden, weight, _, labels = problem(SHAPES[0], 2.0)
    forward = StatisticsRequest(reference_kl=True)
    with pytest.raises(ValueError, match="no reference model was given"):
        linear_token_statistics(hidden, weight, labels, request=forward)
    with pytest.raises(ValueError, match="nothing would use it"):
        linear_token_statistics(hidden, weight, labels, reference=ReferenceHead(hidden, weight))
    with pytest.raises(ValueError, match="same vocabulary"):
        linear_token_statistics(
            hidden, weight, labels, request=forward, reference=ReferenceHead(hidden, weight[:-1])
        )
    with pytest.raises(ValueError, match="one per label"):
        linear_token_statistics(
            hidden, weight, labels, request=forward, reference=ReferenceHead(hidden[:-1], weight)
        )
    top_k = ReferenceTopK(
        torch.zeros(len(labels), 3, dtype=torch.long), torch.zeros(len(labels), 3)
    )
    none = ReferenceTopK(top_k.indices[:, :0], top_k.log_probs[:, :0])
    short = ReferenceTopK(top_k.indices, top_k.log_probs, torch.zeros(2))
    for given, request, message in (
        (top_k, GibbsLoss().request, "needs ReferenceTopK's label_log_probs"),
        (none, forward, "no likely token was given"),
        (short, forward, "one per label"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_token_statistics(hidden, weight, labels, request=request, reference=given)
    with pytest.raises(ValueError, match="k per label"):
        linear_token_statistics(
            hidden,
            weight,
            labels,
            request=forward,
            reference=ReferenceTopK(top_k.indices[1:], top_k.log_probs),
        )
