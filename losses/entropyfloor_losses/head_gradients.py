"""Autograd around the head's products.

`LinearLoss` takes the loss's gradient while a chunk's logits are there; `LinearTokenStatistics`
recomputes the chunks from per-token upstream gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from .head_call import STATISTIC_NAMES, HeadCall
from .head_products import HeadProducts
from .logit_blocks import BlockStatistics, Upstream, concatenate, rows_of
from .reduction import token_mean
from .statistics import StatisticsRequest, TokenStatistics

TokenLoss = Callable[[TokenStatistics], Tensor]

_DIFFERENTIABLE = tuple(f.name for f in fields(Upstream))


class LinearLoss(torch.autograd.Function):
    """Sum of the loss over num_items; the gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        loss: TokenLoss,
        call: HeadCall,
        num_items: int | Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Objective, then the statistics in the order of `STATISTIC_NAMES`."""
        needs = tuple(n and call.grad_enabled for n in ctx.needs_input_grad[:3])
        products = HeadProducts.allocate(hidden, weight, bias, call, needs)
        objective = torch.zeros((), dtype=products.dtype, device=hidden.device)
        parts = []
        for chunk in products.chunks(hidden, labels):
            folded = chunk.fold()
            parts.append(folded)
            advantages = None
            if call.advantages is not None:
                advantages = call.advantages[chunk.start : chunk.stop]
            value, upstream = _evaluate(
                loss, folded, advantages, num_items, products.wants_gradient
            )
            objective += value
            if products.wants_gradient:
                chunk.accumulate(folded, upstream)
        flat = _flat_statistics(parts, call.request, products)
        ctx.gradients = products.results()
        ctx.mark_non_differentiable(*(values for values in flat if values is not None))
        ctx.set_materialize_grads(False)
        return (objective, *flat)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Scale what forward computed, and hand it over."""
        if upstream is None:
            return (None,) * 7
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_loss was differentiated a second time, but its gradients were handed over "
                "the first time. Call linear_loss again, or use linear_token_statistics"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # In place: at 151,936 x 896 a scaled copy of the weight's gradient would be 545 MB more.
        # The usual factor is 1; asking a GPU whether it is would wait for it.
        if upstream.is_cuda or upstream != 1:
            gradients = tuple(g if g is None else g.mul_(upstream) for g in gradients)
        return (*gradients, None, None, None, None)


class LinearTokenStatistics(torch.autograd.Function):
    """Statistics forward; backward recomputes each chunk and applies the upstream vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        call: HeadCall,
    ) -> tuple[Tensor | None, ...]:
        """The statistics in the order of `STATISTIC_NAMES`."""
        products = HeadProducts.allocate(hidden, weight, bias, call, (False, False, False))
        parts = [chunk.fold() for chunk in products.chunks(hidden, labels)]
        flat = _flat_statistics(parts, call.request, products)
        ctx.save_for_backward(hidden, weight, bias, labels)
        # Inputs live in saved tensors (version-checked); the call must not keep the graph alive.
        ctx.call = replace(call, hidden=hidden.detach())
        ctx.mark_non_differentiable(flat[2], flat[3])
        ctx.set_materialize_grads(False)
        return flat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias."""
        hidden, weight, bias, labels = ctx.saved_tensors
        by_name = dict(zip(STATISTIC_NAMES, upstream, strict=True))
        wanted = Upstream(**{name: by_name[name] for name in _DIFFERENTIABLE})
        if all(by_name[name] is None for name in _DIFFERENTIABLE):
            return (None,) * 5
        products = HeadProducts.allocate(hidden, weight, bias, ctx.call, ctx.needs_input_grad[:3])
        with no_autocast(hidden):
            for chunk in products.chunks(hidden, labels):
                chunk.accumulate(chunk.fold(), rows_of(wanted, slice(chunk.start, chunk.stop)))
        return (*products.results(), None, None)


def _evaluate(
    loss: TokenLoss,
    folded: BlockStatistics,
    advantages: Tensor | None,
    num_items: int | Tensor,
    wants_gradient: bool,
) -> tuple[Tensor, Upstream]:
    """A chunk's share of the objective, a scalar, and its derivatives by the chunk's statistics."""
    leaves = {
        name: None if (value := getattr(folded, name)) is None else value.detach().clone()
        for name in _DIFFERENTIABLE
    }
    present = [leaf.requires_grad_(wants_gradient) for leaf in leaves.values() if leaf is not None]
    statistics = TokenStatistics(
        top_k_mass=folded.top_k_mass,
        is_top1=folded.is_top1,
        scored=torch.ones_like(folded.is_top1),
        advantage=advantages,
        **leaves,  # type: ignore[arg-type]
    )
    with torch.enable_grad():
        values = loss(statistics)
        share = token_mean(values.sum(), num_items)
    if values.shape != folded.log_prob.shape:
        raise ValueError(
            f"the loss returned shape {tuple(values.shape)} for {folded.log_prob.numel()} tokens; "
            "it must return one value per token"
        )
    gradients: dict[str, Tensor | None] = dict.fromkeys(_DIFFERENTIABLE)
    if wants_gradient and values.requires_grad:
        taken = iter(torch.autograd.grad(share, present, allow_unused=True))
        gradients = {n: None if leaf is None else next(taken) for n, leaf in leaves.items()}
    return share.detach(), Upstream(**gradients)


def _flat_statistics(
    parts: list[BlockStatistics], request: StatisticsRequest, products: HeadProducts
) -> tuple[Tensor | None, ...]:
    """Statistics of all chunks in the order of `STATISTIC_NAMES`; empty vectors for no tokens."""
    if parts:
        joined = concatenate(parts)
        return tuple(getattr(joined, name) for name in STATISTIC_NAMES)
    empty = torch.zeros(0, dtype=products.dtype, device=products.logits.device)
    optional = (
        request.mean_log_prob,
        request.gem_beta is not None,
        request.support_k is not None,
        request.base_kl is not None,
    )
    return (
        empty,
        empty.clone(),
        empty.clone(),
        empty.bool(),
        *(empty.clone() if wanted else None for wanted in optional),
    )


def no_autocast(tensor: Tensor) -> torch.autocast:
    """The compute dtype is chosen already; autocast would run fp32 reductions in 16 bit."""
    return torch.autocast(tensor.device.type, enabled=False)
