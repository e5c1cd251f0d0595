"""Token statistics: the per-token numbers that losses, logs, controllers and screens share.

    log_prob           log p_y
    entropy            H = -sum_v p_v log p_v          (Shannon, nats)
    top_k_mass         sum of the k largest p_v        (no gradient)
    is_top1            argmax_v p_v == y               (no gradient; the first maximum wins a tie)
    mean_log_prob      (1/V) sum_v log p_v             (label smoothing)
    tempered_log_prob  sum_v q_v log p_v, q = softmax(z / beta) without gradient   (GEM)
    top_k_entropy      entropy of p renormalised on its k most likely tokens (which: no gradient)
    collision_prob     sum_v p_v^2                     (no gradient)
    reference_log_prob log b_y, b a reference model's distribution          (no gradient)
    reference_kl       KL(b || p)

with z the final logits of one position, p = softmax(z), y its label.

Each is declared once, in `STATISTICS`: its name, what has to be asked for, and three formulas.
``plain`` is the readable reference on full logits, differentiated by autograd (``plain.py``);
``fold`` computes the same from a `Block` of logits, and ``add_gradient`` writes its derivative as
terms of dL/dz (``blocks.py``, ``head.py``). A new one is a new entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import Block, LogitGradient, RowSums
from .inputs import check_count, check_positive, check_switch


@dataclass(frozen=True)
class Distribution:
    """What the readable formulas are written in."""

    z: Tensor  # [..., V] final logits
    log_p: Tensor  # [..., V] their log-softmax
    labels: Tensor  # [...] int64 in [0, V), anything where ignored
    log_b: Tensor | None  # [..., V] log-probabilities of the reference model, or None


@dataclass(frozen=True)
class Statistic:
    """The declaration of a statistic; ``option`` is the value that was asked for."""

    name: str  # the attribute of `TokenStatistics`
    plain: Callable[[Distribution, Any], Tensor]  # the readable formula, (of, option) -> [...]
    # The same of a block, (block, option) -> [R]; may overwrite the block's scratch
    fold: Callable[[Block, Any], Tensor]
    # (terms, value, upstream, option) adds upstream * dstatistic/dz to terms, with value and
    # upstream [R]; None: not differentiable
    add_gradient: Callable[[LogitGradient, Tensor, Tensor, Any], None] | None = None
    option: str = ""  # the argument of `StatisticsRequest` that asks for it; "": the name
    default: Any = None  # of that argument; None: computed on request only
    # Refuses a bad option, given its name and value
    check: Callable[[str, Any], None] = check_switch
    # How many of the most likely tokens fold reads
    likeliest: Callable[[Any], int] = lambda option: 1
    dtype: torch.dtype | None = None  # of the values; None: that of the computation
    of_reference: bool = False  # whether it needs a reference model
    # What a GPU's kernels sum for it; None: they do not know it, and the chunk is torch's alone
    kernel_sums: Callable[[Any], RowSums | None] = lambda option: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "option", self.option or self.name)


def _log_prob_gradient(terms: LogitGradient, value: Tensor, upstream: Tensor, option: Any) -> None:
    """e_y - p."""
    terms.add_label(upstream)
    terms.add_p(-upstream)


def _entropy_gradient(terms: LogitGradient, value: Tensor, upstream: Tensor, option: Any) -> None:
    """-p (log p + H)."""
    terms.add_p_log_p(value, -upstream)


def _mean_gradient(terms: LogitGradient, value: Tensor, upstream: Tensor, option: Any) -> None:
    """1 / V - p."""
    terms.add_average(upstream)
    terms.add_p(-upstream)


def _tempered_gradient(terms: LogitGradient, value: Tensor, upstream: Tensor, beta: Any) -> None:
    """Q - p."""
    terms.add_power(1.0 / beta, upstream)
    terms.add_p(-upstream)


def _entropy_of(log_r: Tensor) -> Tensor:
    return -(log_r.exp() * log_r).sum(-1)


def _top_k_gradient(terms: LogitGradient, value: Tensor, upstream: Tensor, k: Any) -> None:
    """-r (log r + H_k) on the k tokens, r = p / p(k tokens); 0 elsewhere."""
    log_r = terms.block.likeliest[:, :k].log_softmax(-1)
    slope = log_r.exp() * (log_r + value.unsqueeze(1))
    terms.add_columns(terms.block.likeliest_columns[:, :k], slope.mul_(-upstream.unsqueeze(1)))


def _reference_log_prob(block: Block, option: Any) -> Tensor:
    if block.reference_top_k is not None:
        assert block.reference_top_k.label_log_probs is not None
        return block.reference_top_k.label_log_probs
    return block.reference_log_prob()


def _reference_kl(block: Block, option: Any) -> Tensor:
    """Of a reference by its k likeliest tokens: of k + 1 events, the last being any other token."""
    if block.reference_top_k is not None:
        log_b, log_p = (
            block.reference_top_k.log_probs,
            block.log_p_of(block.reference_top_k.indices),
        )
        rest = block.reference_top_k.rest()
        others = torch.xlogy(rest, rest / _rest_of(log_p)).squeeze(1)
        return (log_b.exp() * (log_b - log_p)).sum(-1) + others
    return block.reference_kl()


def _reference_kl_gradient(
    terms: LogitGradient, value: Tensor, upstream: Tensor, option: Any
) -> None:
    """P - b; outside the reference's k tokens p (1 - b' / p'), of the probability of all others."""
    top_k = terms.block.reference_top_k
    if top_k is None:
        terms.add_reference(-upstream)
        terms.add_p(upstream)
        return
    log_p = terms.block.log_p_of(top_k.indices)
    share = top_k.rest() / _rest_of(log_p)
    inside = log_p.exp().mul_(share).sub_(top_k.log_probs.exp())
    terms.add_columns(top_k.indices, inside.mul_(upstream.unsqueeze(1)))
    terms.add_p(upstream * (1.0 - share.squeeze(1)))


def _rest_of(log_p: Tensor) -> Tensor:
    """``[R, 1]`` probability outside the tokens whose log p is given, kept above rounding."""
    rest = 1.0 - log_p.exp().sum(-1, keepdim=True)
    return rest.clamp_(min=torch.finfo(log_p.dtype).eps)


def _reference_of(of: Distribution) -> Tensor:
    assert of.log_b is not None
    return of.log_b


STATISTICS: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            "log_prob",
            default=True,
            plain=lambda of, _: of.log_p.gather(-1, of.labels.unsqueeze(-1)).squeeze(-1),
            fold=lambda block, _: block.log_p_of(block.labels.unsqueeze(1)).squeeze(1),
            kernel_sums=lambda _: RowSums(),
            add_gradient=_log_prob_gradient,
        ),
        Statistic(
            "entropy",
            default=True,
            plain=lambda of, _: _entropy_of(of.log_p),
            # -sum p (s - log S), exact to rounding for peaked rows; rounding must not go below 0.
            fold=lambda block, _: (block.log_sum - block.mean_shifted).clamp_(min=0.0),
            kernel_sums=lambda _: RowSums(),
            add_gradient=_entropy_gradient,
        ),
        Statistic(
            "top_k_mass",
            option="top_k",
            default=2,
            check=partial(check_count, least=1),
            likeliest=int,
            plain=lambda of, k: of.log_p.exp().topk(k, dim=-1).values.sum(-1).clamp(max=1.0),
            fold=lambda block, k: (
                block.likeliest[:, :k].exp().sum(-1).div_(block.total).clamp_(max=1.0)
            ),
            kernel_sums=lambda k: RowSums() if k <= 2 else None,
        ),
        Statistic(
            "is_top1",
            default=True,
            dtype=torch.bool,
            plain=lambda of, _: of.z.argmax(-1) == of.labels,
            fold=lambda block, _: block.first_argmax == block.labels,
            kernel_sums=lambda _: RowSums(),
        ),
        Statistic(
            "mean_log_prob",
            plain=lambda of, _: of.log_p.mean(-1),
            fold=lambda block, _: block.average_shifted() - block.log_sum,
            kernel_sums=lambda _: RowSums(average=True),
            add_gradient=_mean_gradient,
        ),
        Statistic(
            "tempered_log_prob",
            option="gem_beta",
            check=check_positive,
            plain=lambda of, beta: ((of.z.detach() / beta).softmax(-1) * of.log_p).sum(-1),
            fold=lambda block, beta: block.power_mean(1.0 / beta) - block.log_sum,
            kernel_sums=lambda beta: RowSums(power=1.0 / beta),
            add_gradient=_tempered_gradient,
        ),
        Statistic(
            "top_k_entropy",
            check=partial(check_count, least=2),
            likeliest=int,
            plain=lambda of, k: _entropy_of(of.log_p.topk(k, dim=-1).values.log_softmax(-1)),
            fold=lambda block, k: _entropy_of(block.likeliest[:, :k].log_softmax(-1)),
            add_gradient=_top_k_gradient,
        ),
        Statistic(
            "collision_prob",
            plain=lambda of, _: of.log_p.exp().square().sum(-1),
            fold=lambda block, _: block.power_total(2.0) / block.total.square(),
            kernel_sums=lambda _: RowSums(power=2.0),
        ),
        Statistic(
            "reference_log_prob",
            of_reference=True,
            plain=lambda of, _: _reference_of(of).gather(-1, of.labels.unsqueeze(-1)).squeeze(-1),
            fold=_reference_log_prob,
            kernel_sums=lambda _: RowSums(),
        ),
        # Last of the reference's: it uses up the block's reference logits.
        Statistic(
            "reference_kl",
            of_reference=True,
            plain=lambda of, _: (_reference_of(of).exp() * (_reference_of(of) - of.log_p)).sum(-1),
            fold=_reference_kl,
            kernel_sums=lambda _: RowSums(),
            add_gradient=_reference_kl_gradient,
        ),
    )
}
