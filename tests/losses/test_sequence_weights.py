"""Weights that come from a token's sequence: values, gradients, packing, micro-batches."""

import itertools

import numpy as np
import pytest
import torch
from products_recorder import Recorder
from reference import ce, dco_weight, head_gradients, log_softmax

from cases import HEADS, head_arguments, problem
from entropyfloor_losses import (
    CoverageLoss,
    CrossEntropyLoss,
    ReferenceHead,
    ReferenceTopK,
    SequenceWeights,
    TailLoss,
    linear_loss,
    linear_token_statistics,
    reduce_tokens,
    sequence_weights,
    token_statistics,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
# Seven sequences of 2 to 5 tokens, packed into one row; some tokens are not scored.
LENGTHS = [3, 5, 2, 4, 2, 3, 4]
IGNORED = [0, 3, 8, 9, 21]
TOKENS = sum(LENGTHS)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])
OWNER = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
LOSSES = {
    "dco": CoverageLoss(),
    "dco_large": CoverageLoss(group_size=64),
    "tail": TailLoss(),
    "tail_little": TailLoss(drop_fraction=0.2),
}


def sequence_problem(scale=0.7):
    """Sequences whose probabilities are neither 0 nor 1, and a base model close by."""
    hidden, weight, bias, labels = problem((TOKENS, 6, 123), scale, seed=3)
    labels = (hidden @ weight.T).argmax(-1)  # likely ones
    weight = 3 * weight
    labels[IGNORED] = -100
    noise = torch.tensor(np.random.default_rng(5).normal(size=weight.shape)) * 0.3
    return hidden, weight, bias, labels, ReferenceHead(hidden, weight + noise, bias)


def reference_weights(name, log_p, log_b, scored):
    """Of all tokens, 0 where ignored; by loops over the sequences."""
    weights, loss = np.zeros(TOKENS), LOSSES[name]
    members = [np.flatnonzero((s == OWNER) & scored) for s in range(len(LENGTHS))]
    members = [m for m in members if len(m)]
    if name.startswith("tail"):
        change = [(-log_p[m].mean()) - (-log_b[m].mean()) for m in members]
        dropped = np.argsort(change)[: int(loss.drop_fraction * len(members))]
        kept = np.concatenate([m for s, m in enumerate(members) if s not in dropped])
        weights[kept] = scored.sum() / len(kept)
        return weights
    for m in members:
        weights[m] = dco_weight(log_p[m], loss.group_size)
    return weights


def weights_of(loss, hidden, weight, bias, labels, base, positions, **options):
    statistics = linear_token_statistics(
        hidden,
        weight,
        labels,
        bias=bias,
        request=loss.weights_request,
        reference=base if loss.weights_request.needs_reference else None,
        **options,
    )
    return sequence_weights(loss, statistics, positions)


@pytest.mark.parametrize("head", ["plain", "all"])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_values_and_gradients_on_every_engine(name, head):
    hidden, weight, bias, labels, base = sequence_problem()
    loss, options = LOSSES[name], head_arguments(HEADS[head])
    weights = weights_of(loss, hidden, weight, bias, labels, base, POSITIONS, **options)

    scored, y = (labels >= 0).numpy(), labels.clamp(min=0).numpy()
    rows = np.arange(TOKENS)
    log_p, log_b = (
        log_softmax(HEADS[head].logits((h @ w.T + b).numpy()))[rows, y]
        for h, w, b in ((hidden, weight, bias), (base.hidden, base.weight, base.bias))
    )
    expected_weights = reference_weights(name, log_p, log_b, scored)
    np.testing.assert_allclose(weights, expected_weights, **CLOSE)
    assert len(np.unique(expected_weights.round(6))) > 1

    total, _, *expected = head_gradients(
        hidden.numpy(), weight.numpy(), bias.numpy(), y, ce, HEADS[head], expected_weights
    )
    for engine in ("linear_loss", "linear_token_statistics", "token_statistics"):
        inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        if engine == "linear_loss":
            value, _ = linear_loss(
                *inputs[:2],
                labels,
                loss,
                bias=inputs[2],
                num_items=1,
                advantages=weights,
                chunk_size=4,
                **options,
            )
        elif engine == "linear_token_statistics":
            statistics = linear_token_statistics(
                *inputs[:2], labels, bias=inputs[2], advantages=weights, **options
            )
            value = reduce_tokens(loss(statistics), statistics.scored, num_items=1)
        else:
            logits = inputs[0] @ inputs[1].T + inputs[2]
            statistics = token_statistics(logits, labels, advantages=weights, **options)
            value = reduce_tokens(loss(statistics), statistics.scored, num_items=1)
        value.backward()
        np.testing.assert_allclose(value.item(), total, **CLOSE)
        for tensor, gradient in zip(inputs, expected, strict=True):
            np.testing.assert_allclose(tensor.grad, gradient, **CLOSE)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, None])
def test_weights_that_are_formed_on_the_way_are_those_formed_before(chunk_size):
    """Sequences longer than a chunk, several to a chunk, all in one; and no product more."""
    hidden, weight, bias, labels, base = sequence_problem()
    before = weights_of(LOSSES["dco"], hidden, weight, bias, labels, base, POSITIONS)
    results = []
    for advantages in (before, SequenceWeights(LOSSES["dco"], POSITIONS)):
        inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        value, statistics = linear_loss(
            *inputs[:2],
            labels,
            LOSSES["dco"],
            bias=inputs[2],
            advantages=advantages,
            chunk_size=chunk_size,
        )
        value.backward()
        results.append([value, statistics.advantage, *(t.grad for t in inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("chunk_size", "twice"), [(None, 0), (4, 0), (3, 8), (1, 18)])
def test_only_sequences_longer_than_a_chunk_cost_one_more_product(chunk_size, twice):
    """Of 18 scored tokens 8 lie in sequences of more than three, none in one of more than four."""
    hidden, weight, _, labels, _ = sequence_problem()
    inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
    weights = SequenceWeights(LOSSES["dco"], POSITIONS)
    with Recorder() as recorder:
        linear_loss(*inputs, labels, LOSSES["dco"], advantages=weights, chunk_size=chunk_size)
    assert recorder.multiplications == (3 * 18 + twice) * weight.numel()


def test_tokens_left_out_cost_one_product_instead_of_three():
    """TailSFT's second pass: their statistics are computed, their gradient, zero, is not."""
    hidden, weight, bias, labels, base = sequence_problem()
    weights = weights_of(TailLoss(), hidden, weight, bias, labels, base, POSITIONS)
    scored, kept = int((labels >= 0).sum()), int((weights != 0).sum())
    assert 0 < kept < scored
    inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
    with Recorder() as recorder:
        _, statistics = linear_loss(*inputs, labels, TailLoss(), bias=bias, advantages=weights)
    assert recorder.multiplications == (scored + 2 * kept) * weight.numel()
    expected = linear_token_statistics(hidden, weight, labels, bias=bias)
    torch.testing.assert_close(statistics.entropy, expected.entropy)


@pytest.mark.parametrize("name", LOSSES)
def test_packed_equals_a_row_per_sequence(name):
    hidden, weight, bias, labels, base = sequence_problem()
    packed = weights_of(LOSSES[name], hidden, weight, bias, labels, base, POSITIONS)
    longest = max(LENGTHS)
    rows = torch.zeros(len(LENGTHS), longest, dtype=torch.long)
    inside = torch.zeros(len(LENGTHS), longest, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(np.cumsum([0, *LENGTHS]), LENGTHS, strict=False)):
        rows[row, :length], inside[row, :length] = torch.arange(start, start + length), True
    padded_labels = torch.where(inside, labels[rows], torch.full_like(rows, -100))
    padded = weights_of(
        LOSSES[name],
        hidden[rows],
        weight,
        bias,
        padded_labels,
        ReferenceHead(base.hidden[rows], base.weight, base.bias),
        None,
    )
    torch.testing.assert_close(padded[inside], packed, rtol=1e-12, atol=1e-12)
    assert not padded[~inside].any()


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_have_the_weights_of_the_whole(name):
    """Micro-batches and processes: only ranks need to know of the others' sequences."""
    hidden, weight, bias, labels, base = sequence_problem()
    loss = LOSSES[name]
    whole = weights_of(loss, hidden, weight, bias, labels, base, POSITIONS)
    cuts = np.cumsum([0, *LENGTHS])[[0, 2, 5, 7]]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        part = slice(start, stop)
        statistics = linear_token_statistics(
            hidden[part],
            weight,
            labels[part],
            bias=bias,
            request=loss.weights_request,
            reference=base.at(torch.arange(TOKENS)[part], torch.float64)
            if loss.weights_request.needs_reference
            else None,
        )
        parts.append((statistics, POSITIONS[part]))

    calls = []  # what each part would send to the others, in the order of the calls

    def listen(values):
        calls.append(values)
        return values

    for statistics, positions in parts:
        sequence_weights(loss, statistics, positions, gather=listen)
    per_part = len(calls) // len(parts)
    of_all = [torch.cat(calls[i::per_part]) for i in range(per_part)]
    weights = []
    for statistics, positions in parts:
        answers = iter(of_all)
        weights.append(
            sequence_weights(loss, statistics, positions, gather=lambda _, a=answers: next(a))
        )
    torch.testing.assert_close(torch.cat(weights), whole, rtol=1e-12, atol=1e-12)
    assert bool(calls) == hasattr(loss, "ranks_the_batch")


@pytest.mark.parametrize("group_size", [1, 2, 8, 64])
def test_dco_has_the_gradient_of_its_objective(group_size):
    """Autograd of -log(1 - (1 - P)^N), P the product over the sequence."""
    hidden, weight, bias, labels, base = sequence_problem()
    loss = CoverageLoss(group_size=group_size)
    weights = weights_of(loss, hidden, weight, bias, labels, base, POSITIONS)
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_loss(hidden, ours, labels, loss, bias=bias, num_items=1, advantages=weights)[
        0
    ].backward()
    log_p = token_statistics(hidden @ theirs.T + bias, labels).log_prob
    probability = torch.stack(
        [log_p[torch.tensor(s == OWNER)].sum().exp() for s in range(len(LENGTHS))]
    )
    scored = torch.tensor([bool((labels[torch.tensor(s == OWNER)] >= 0).any()) for s in range(7)])
    (-(1 - (1 - probability) ** group_size).log())[scored].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
    if group_size == 1:  # cross-entropy itself
        assert bool((weights[labels >= 0] == 1).all())


def test_dco_at_the_ends():
    from entropyfloor_losses.coverage import coverage_weight

    log_p = torch.tensor([-2000.0, -50.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(coverage_weight(log_p, 8), torch.tensor([1.0, 1.0, 0.0]).double())


def test_tail_keeps_all_at_the_first_step_and_ce_where_nothing_is_dropped():
    hidden, weight, bias, labels, _ = sequence_problem()
    unchanged = ReferenceHead(hidden, weight, bias)
    weights = weights_of(TailLoss(), hidden, weight, bias, labels, unchanged, POSITIONS)
    assert bool((weights[labels >= 0] == 1).all())
    base = sequence_problem()[4]
    weights = weights_of(TailLoss(drop_fraction=0.0), hidden, weight, bias, labels, base, POSITIONS)
    assert bool((weights[labels >= 0] == 1).all())


def test_the_references_label_log_probs_are_enough():
    """From a cache: no hidden states, no likely tokens."""
    hidden, weight, bias, labels, base = sequence_problem()
    loss = TailLoss()
    request = loss.weights_request
    full = linear_token_statistics(
        hidden, weight, labels, bias=bias, request=request, reference=base
    )
    cached = ReferenceTopK(
        torch.zeros(TOKENS, 0, dtype=torch.long),
        torch.zeros(TOKENS, 0, dtype=torch.float64),
        full.reference_log_prob,
    )
    weights = weights_of(loss, hidden, weight, bias, labels, cached, POSITIONS)
    torch.testing.assert_close(weights, sequence_weights(loss, full, POSITIONS))


@pytest.mark.parametrize("name", LOSSES)
def test_no_scored_token(name):
    hidden, weight, bias, labels, base = sequence_problem()
    nothing = torch.full_like(labels, -100)
    weights = weights_of(LOSSES[name], hidden, weight, bias, nothing, base, POSITIONS)
    value, _ = linear_loss(
        hidden, weight.requires_grad_(), nothing, LOSSES[name], bias=bias, advantages=weights
    )
    value.backward()
    assert value == 0 and not weight.grad.any()


def test_refused():
    hidden, weight, bias, labels, _ = sequence_problem()
    with pytest.raises(ValueError, match=r"weights tokens by advantages.*sequence_weights"):
        linear_loss(hidden, weight, labels, CoverageLoss(), bias=bias)
    statistics = linear_token_statistics(hidden, weight, labels, bias=bias)
    with pytest.raises(ValueError, match=r"position_ids have shape \(3,\)"):
        sequence_weights(CoverageLoss(), statistics, torch.arange(3))
    for loss, message in ((TailLoss(), "whole batch"), (CrossEntropyLoss(), "no weights of seq")):
        with pytest.raises(ValueError, match=message):
            linear_loss(hidden, weight, labels, loss, advantages=SequenceWeights(loss))
