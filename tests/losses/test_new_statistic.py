"""A statistic is one declaration: added here, it runs on both engines, gradient included."""

import pytest
import torch

from cases import HEADS, SCALES, SHAPES, head_arguments, problem
from entropyfloor_losses import StatisticsRequest, linear_loss, linear_token_statistics
from entropyfloor_losses.inputs import check_positive
from entropyfloor_losses.plain import token_statistics
from entropyfloor_losses.statistics import STATISTICS, Statistic


def collision_gradient(terms, value, upstream, option):
    """sum p^2: 2 p (p - sum p^2)."""
    terms.add_p_times(
        lambda log_p: log_p.exp().sub_(value.unsqueeze(1)).mul_(2 * upstream.unsqueeze(1))
    )


def second_q_gradient(terms, value, upstream, beta):
    """sum q log p, once more: two statistics that want the logits for themselves."""
    terms.add_of_shifted(lambda s: (s / beta).softmax(-1) * upstream.unsqueeze(1))
    terms.add_p(-upstream)


NEW = (
    Statistic(
        "collision",
        plain=lambda of, _: of.log_p.exp().square().sum(-1),
        fold=lambda block, _: (2 * block.shifted).exp().sum(-1) / block.total.square(),
        add_gradient=collision_gradient,
    ),
    Statistic(
        "flat_log_prob",
        option="flat_beta",
        check=check_positive,
        plain=lambda of, beta: ((of.z.detach() / beta).softmax(-1) * of.log_p).sum(-1),
        fold=lambda block, beta: (
            ((block.shifted / beta).softmax(-1) * block.shifted).sum(-1) - block.log_sum
        ),
        add_gradient=second_q_gradient,
    ),
)


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    for statistic in NEW:
        monkeypatch.setitem(STATISTICS, statistic.name, statistic)


class SumOfAll:
    """Every statistic that has a gradient, with factors that differ."""

    def __init__(self, options):
        self.request = StatisticsRequest(**options)
        self.names = [n for n in self.request.options if STATISTICS[n].add_gradient is not None]

    def __call__(self, statistics):
        return sum((-1) ** i * (i + 1) * getattr(statistics, n) for i, n in enumerate(self.names))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {"collision": True},
        {"flat_beta": 2.0},
        {"collision": True, "flat_beta": 2.0, "gem_beta": 0.7, "top_k_entropy": 3},
    ],
)
def test_fused_equals_autograd_on_plain_logits(options, head, scale):
    loss = SumOfAll(options)
    for shape in SHAPES:
        inputs = problem(shape, SCALES[scale])
        labels = inputs[3]
        plain, fused, recomputed = (
            [t.clone().requires_grad_() for t in inputs[:3]] for _ in range(3)
        )
        statistics = token_statistics(
            plain[0] @ plain[1].T + plain[2],
            labels,
            request=loss.request,
            **head_arguments(HEADS[head]),
        )
        loss(statistics).mean().backward()

        arguments = {"chunk_size": 4, **head_arguments(HEADS[head])}
        value, _ = linear_loss(*fused[:2], labels, loss, bias=fused[2], **arguments)
        value.backward()
        again = linear_token_statistics(
            *recomputed[:2], labels, bias=recomputed[2], request=loss.request, **arguments
        )
        loss(again).mean().backward()
        for name in loss.names:
            torch.testing.assert_close(getattr(again, name), getattr(statistics, name))
        for a, b, c in zip(plain, fused, recomputed, strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(c.grad, a.grad, rtol=1e-8, atol=1e-10)


def test_its_option_is_checked_like_any_other():
    with pytest.raises(ValueError, match="collision is 2; it must be True"):
        StatisticsRequest(collision=2)
    with pytest.raises(ValueError, match=r"flat_beta is 0\.0"):
        StatisticsRequest(flat_beta=0.0)
