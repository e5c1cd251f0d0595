"""Limits that hold exactly, and the invariances a training loop relies on."""

import pytest
import torch

from cases import LOSSES, problem
from entropyfloor_losses import (
    AnchoredLoss,
    BoundedProbabilityLoss,
    CrossEntropyLoss,
    DynamicEntropyLoss,
    EntropyAdaptiveLoss,
    EntropyBonusLoss,
    GEMLoss,
    GibbsLoss,
    PowerLoss,
    ProximalLoss,
    ReferenceHead,
    SelectiveEntropyLoss,
    StatisticsRequest,
    linear_loss,
    linear_token_statistics,
    reduce_tokens,
    token_statistics,
)


def gradients(loss, hidden, weight, bias, labels, **options):
    inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    value, _ = linear_loss(inputs[0], inputs[1], labels, loss, bias=inputs[2], **options)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        SelectiveEntropyLoss(lam=0.0, tau=0.5),
        BoundedProbabilityLoss(tau=0.0),
        EntropyBonusLoss(lam=0.0),
        CrossEntropyLoss(smoothing=0.0),
        EntropyAdaptiveLoss(alpha=0.0),
        PowerLoss(alpha=0.0),
        PowerLoss(alpha=1e-13),
    ],
    ids=lambda loss: loss.name,
)
def test_limits_that_are_cross_entropy(loss):
    case = problem((23, 17, 507), 3.0)
    assert_same(gradients(loss, *case), gradients(CrossEntropyLoss(), *case))


def test_gem_at_beta_one_has_the_gradient_of_cross_entropy_and_another_value():
    case = problem((23, 17, 507), 3.0)
    value, *gem = gradients(GEMLoss(beta=1.0), *case)
    ce_value, *ce = gradients(CrossEntropyLoss(), *case)
    assert_same(gem, ce)
    assert float(ce_value - value) > 0.1  # by the mean entropy


def test_cross_entropy_equals_torch():
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    labels[::5] = -100
    for smoothing in (0.0, 0.1):
        ours = gradients(CrossEntropyLoss(smoothing=smoothing), hidden, weight, bias, labels)
        inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        value = torch.nn.functional.cross_entropy(
            inputs[0] @ inputs[1].T + inputs[2], labels, label_smoothing=smoothing
        )
        assert_same(ours, [value.detach(), *torch.autograd.grad(value, inputs)])


def test_sed_fixed_point_for_lam_above_one():
    """METHODS section 1: p* = (1/2 + sqrt(1/4 + 2/lam)) / 2, where the gradient on z_y vanishes."""
    for lam, expected in ((2.0, 0.809), (5.0, 0.653)):
        p = 0.5 * (0.5 + (0.25 + 2 / lam) ** 0.5)
        assert round(p, 3) == expected
        z = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
        z[0, 0] = torch.logit(torch.tensor(p, dtype=torch.float64))
        z.requires_grad_()
        loss = SelectiveEntropyLoss(lam=lam, top_k=1, tau=1.0)
        loss(token_statistics(z, torch.tensor([0]), request=loss.request)).sum().backward()
        assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_masked_equals_removed(name):
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    keep = torch.arange(23) % 3 != 0
    masked_labels = torch.where(keep, labels, torch.full_like(labels, -100))
    value, gh, *rest = gradients(LOSSES[name][0], hidden, weight, bias, masked_labels)
    short = gradients(LOSSES[name][0], hidden[keep], weight, bias, labels[keep])
    assert_same([value, gh[keep], *rest], short)
    assert gh[~keep].abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_positions_are_exactly_zero_in_value_and_gradient(name):
    hidden, weight, bias, labels = problem((6, 4, 123), 3.0)
    labels[2] = -100
    loss = LOSSES[name][0]
    logits = (hidden @ weight.T + bias).requires_grad_()
    plain = token_statistics(logits, labels, request=loss.request)
    fused = linear_token_statistics(hidden, weight, labels, bias=bias, request=loss.request)
    for statistics in (plain, fused):
        values = loss(statistics)
        assert statistics.where_scored(values)[2] == 0
        assert reduce_tokens(values, statistics.scored).isfinite()
        assert not loss.selected(statistics)[2]
    reduce_tokens(loss(plain), plain.scored).backward()
    assert logits.grad[2].abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_with_unequal_counts_sum_to_the_batch(name):
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    labels[3:9] = -100
    scored = int((labels != -100).sum())
    whole = gradients(LOSSES[name][0], hidden, weight, bias, labels)
    total, grad_weight = 0.0, torch.zeros_like(weight)
    for part in (slice(0, 4), slice(4, 9), slice(9, 23)):  # the middle one has no scored token
        micro = gradients(
            LOSSES[name][0], hidden[part], weight, bias, labels[part], num_items=scored
        )
        total, grad_weight = total + micro[0], grad_weight + micro[2]
    assert_same([total, grad_weight], [whole[0], whole[2]])


@pytest.mark.parametrize("name", LOSSES)
def test_no_scored_token_is_zero_with_a_live_graph(name):
    hidden, weight, bias, _ = problem((3, 4, 123), 1.0)
    labels = torch.full((3,), -100)
    value, *grads = gradients(LOSSES[name][0], hidden, weight, bias, labels)
    assert value == 0
    assert all(
        g.shape == t.shape and not g.any()
        for g, t in zip(grads, (hidden, weight, bias), strict=True)
    )
    h = hidden.clone().requires_grad_()
    statistics = linear_token_statistics(h, weight, labels, request=LOSSES[name][0].request)
    reduce_tokens(LOSSES[name][0](statistics), statistics.scored).backward()
    assert not h.grad.any()


def test_leading_dimensions_are_kept():
    hidden, weight, _, labels = problem((24, 5, 123), 2.0)
    labels[7] = -100
    flat = linear_token_statistics(hidden, weight, labels)
    shaped = linear_token_statistics(hidden.view(2, 3, 4, 5), weight, labels.view(2, 3, 4))
    assert shaped.entropy.shape == (2, 3, 4)
    assert_same([shaped.entropy.flatten()], [flat.entropy])


def test_masked_vocabulary_counts_as_probability_zero():
    hidden, weight, bias, labels = problem((6, 4, 123), 2.0)
    bias[10:60] = float("-inf")
    labels = labels.clamp(max=9)
    kept = torch.cat([torch.arange(10), torch.arange(60, 123)])
    short = token_statistics(hidden @ weight[kept].T + bias[kept], labels)
    for statistics in (
        token_statistics(hidden @ weight.T + bias, labels),
        linear_token_statistics(hidden, weight, labels, bias=bias),
    ):
        assert_same(
            [statistics.log_prob, statistics.entropy, statistics.top_k_mass],
            [short.log_prob, short.entropy, short.top_k_mass],
        )


def test_ties_count_towards_the_mass_and_the_first_maximum_is_top1():
    logits = torch.zeros(2, 300, dtype=torch.float64)
    logits[:, [7, 150, 299]] = 5.0
    weight = torch.eye(300, dtype=torch.float64)
    labels = torch.tensor([7, 150])
    plain = token_statistics(logits, labels, top_k=2)
    fused = linear_token_statistics(logits, weight, labels, top_k=2)
    assert_same([fused.top_k_mass], [plain.top_k_mass])
    assert plain.is_top1.tolist() == fused.is_top1.tolist() == [True, False]


def test_without_gradients_the_loss_is_only_evaluated():
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    weight.requires_grad_()
    with torch.no_grad():
        value, _ = linear_loss(hidden, weight, labels, CrossEntropyLoss(), bias=bias)
    assert not value.requires_grad


def test_a_second_backward_is_refused_not_wrong():
    hidden, weight, _, labels = problem((5, 3, 123), 1.0)
    value, _ = linear_loss(hidden.requires_grad_(), weight, labels, CrossEntropyLoss())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@pytest.mark.parametrize("beta", [40.0, 300.0])
def test_gift_at_large_beta_has_the_gradient_of_cross_entropy(beta):
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    base = ReferenceHead(hidden.flip(0) / 8, weight)  # every label has some probability
    _, *gift = gradients(GibbsLoss(beta=beta), hidden, weight, bias, labels, reference=base)
    _, *ce = gradients(CrossEntropyLoss(), hidden, weight, bias, labels)
    assert_same(gift, ce)


def test_gift_at_beta_zero_is_the_kl_to_the_base_and_at_20_nearly_cross_entropy():
    """The released beta: the label's share of the target is above 0.99 from b_y = 2.1e-7 on."""
    hidden, weight, bias, labels = problem((23, 17, 507), 3.0)
    base = ReferenceHead(hidden.flip(0) / 8, weight)

    class ReferenceKL:
        request = StatisticsRequest(reference_kl=True)

        def __call__(self, statistics):
            return statistics.reference_kl

    inputs = (hidden, weight, bias, labels)
    assert_same(
        gradients(GibbsLoss(beta=0.0), *inputs, reference=base),
        gradients(ReferenceKL(), *inputs, reference=base),
    )
    _, *gift = gradients(GibbsLoss(), *inputs, reference=base)
    _, *ce = gradients(CrossEntropyLoss(), *inputs)
    for mine, theirs in zip(gift, ce, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_asft_without_its_anchor_is_dft_and_psft_at_a_refresh_pulls_as_cross_entropy():
    hidden, weight, bias, labels = inputs = problem((23, 17, 507), 3.0)
    base = ReferenceHead(hidden, weight, bias)
    assert_same(
        gradients(AnchoredLoss(lam=0.0), *inputs, reference=base),
        gradients(BoundedProbabilityLoss(tau=float("inf")), *inputs),
    )
    _, *psft = gradients(ProximalLoss(), *inputs, reference=base)
    assert_same(psft, gradients(CrossEntropyLoss(), *inputs)[1:])
    # A model that has moved on: clipped tokens pull no more.
    moved = ReferenceHead(hidden, 0.5 * weight, bias)
    request = ProximalLoss().request
    statistics = linear_token_statistics(
        hidden, weight, labels, bias=bias, request=request, reference=moved
    )
    clipped = ProximalLoss().selected(statistics)
    assert clipped.any() and not clipped.all()
    gradient_of_hidden = gradients(ProximalLoss(), *inputs, reference=moved)[1]
    assert torch.equal(gradient_of_hidden.abs().sum(-1) == 0, clipped)


def test_deft_is_power_between_its_ends():
    """Certain of one token: 1 - p; no idea: alpha = 1 / V, close to cross-entropy."""
    z = torch.zeros(1, 507, dtype=torch.float64)
    for logit, alpha in ((0.0, 1 / 507), (60.0, 1.0)):
        z[0, 3] = logit
        loss = DynamicEntropyLoss()
        statistics = token_statistics(z, torch.tensor([3]), request=loss.request)
        assert_same([loss(statistics)], [PowerLoss(alpha=alpha)(statistics)])
