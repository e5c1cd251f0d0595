"""The head: losses and statistics of (hidden states, head weight), never holding ``[N, V]`` logits.

A call is checked and cut into chunks of tokens (``call.py``). A chunk at a time,

    logits       z = h W^T                                    `Pass.fold`, ``chunks.py``
    statistics   of each block of rows that fits the cache    `Pass.fold`, ``statistics.py``
    loss         on them as leaves; autograd gives dL/dstat   `_evaluate`
    dlogits      each statistic's terms of dL/dz, in place    `Pass.add_gradients`, ``blocks.py``
    products     dh = dz W,  dW += dz^T h                     `Pass.add_gradients`, ``products.py``

Three matrix products, the floor for this computation; two when the head or the hidden states are
frozen, one when both are. Backward only scales what is already there. `linear_token_statistics`
is for callers who need per-token upstream gradients: it keeps one number per token and statistic,
and recomputes the chunks in backward (four products).

Precision: products accumulate in fp32 inside the matrix product; softmax, log-sum-exp, entropy
and the gradient of the weight across chunks are fp32 (fp64 for fp64 input). On CUDA, 16-bit
products are returned in fp32 where the device can; elsewhere they are rounded once to the input's
dtype, as the model's own forward does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .blocks import LogitTransform
from .call import Call, Group
from .chunks import Pass
from .inputs import ReferenceHead, ReferenceTopK
from .request import StatisticsRequest, TokenStatistics, token_mean
from .sequences import SequenceWeights
from .statistics import STATISTICS

TokenLoss = Callable[[TokenStatistics], Tensor]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _untraced(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function``, which a compiled caller calls as it is: chunks follow from the labels.

    `torch.compiler.disable` alone would load torch's compiler, seconds, where nothing is compiled.
    """

    @functools.wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            as_it_is: Callable[Arguments, Result] = torch.compiler.disable(function)
            return as_it_is(*args, **kwargs)
        return function(*args, **kwargs)

    return called


@_untraced
def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss: TokenLoss,
    *,
    bias: Tensor | None = None,
    num_items: int | Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reference: ReferenceHead | ReferenceTopK | None = None,
    advantages: Tensor | SequenceWeights | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, TokenStatistics]:
    """Loss of a language-model head, its gradient computed chunk by chunk during the forward pass.

    Labels are not shifted: ``hidden[i]`` predicts ``labels[i]``.

    Args:
        hidden: ``[..., H]`` last hidden states; fp64, fp32, bf16 or fp16.
        weight: ``[V, H]`` head weight, the dtype of ``hidden`` (any floating one under autocast).
        labels: ``[...]`` int64 in [0, V), or -100 to ignore; ignored tokens cost nothing.
        loss: an object of this package, or any callable that maps `TokenStatistics` of n tokens to
            ``[n]`` values, token by token (a token's value may depend on that token only). Its
            attribute ``request``, if there is one, says which statistics it needs.
        bias: ``[V]`` or None; -inf entries mask the vocabulary.
        num_items: what the sum is divided by: the scored tokens of the *global* batch, as
            transformers' ``num_items_in_batch``. Default: this call's scored tokens.
        temperature: above 0; divides the logits.
        softcap: ``c * tanh(logits / c)``, or None.
        logit_scale: factor on the raw products, before the cap.
        reference: hidden states and head of a reference model at the same positions, for losses
            that ask for ``reference_kl`` or ``reference_log_prob``: one more matrix product and one
            more chunk of logits, no gradient. Or its most likely tokens: no product.
        advantages: ``[...]``, the labels' shape, for losses that weight tokens by them; see
            `group_advantages` and `sequence_weights`. Or `SequenceWeights`, which are formed on the
            way.
        chunk_size: tokens per chunk; default: even chunks of at most 320 MiB of logits (on
            accelerators 512 MiB, or 2048 tokens if these are more).

    Returns:
        (loss, statistics): a scalar (fp32; fp64 for fp64 input) that carries gradients to hidden,
        weight and bias, and detached `TokenStatistics` in the labels' shape. With no scored token
        the loss is 0 and the graph is alive. Backward may run once: gradients are handed over,
        not copied.

    Raises:
        ValueError: shapes or dtypes that do not match, labels out of range, k > V, NaN logits.

    """
    request = getattr(loss, "request", None) or StatisticsRequest()
    if not isinstance(request, StatisticsRequest):
        raise ValueError(
            f"{type(loss).__name__}.request is {request!r}; it must be a StatisticsRequest"
        )
    call = Call.of(
        (hidden, weight, labels, bias),
        request=request,
        transform=LogitTransform(logit_scale, softcap, temperature),
        reference=reference,
        advantages=advantages,
        chunk_size=chunk_size,
        zero_advantage_moves_nothing=getattr(loss, "zero_advantage_moves_nothing", False),
    )
    count = call.labels.numel() if num_items is None else num_items
    with _no_autocast(hidden):
        objective, *values = _LinearLoss.apply(call.hidden, weight, bias, loss, call, count)
    return objective, call.unflatten(values)


@_untraced
def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    top_k: int = 2,
    request: StatisticsRequest | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reference: ReferenceHead | ReferenceTopK | None = None,
    advantages: Tensor | None = None,
    chunk_size: int | None = None,
) -> TokenStatistics:
    """`token_statistics` of ``hidden @ weight.T + bias`` without logits, differentiable per token.

    Arguments are `linear_loss`'s; ``request`` (or ``top_k``) says what to compute. Any upstream
    gradients, uniform or not, are honoured; backward recomputes the chunks.
    """
    request = request or StatisticsRequest(top_k=top_k)
    call = Call.of(
        (hidden, weight, labels, bias),
        request=request,
        transform=LogitTransform(logit_scale, softcap, temperature),
        reference=reference,
        advantages=advantages,
        chunk_size=chunk_size,
    )
    return call.unflatten(_LinearTokenStatistics.apply(call.hidden, weight, bias, call))


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """The compute dtype is chosen already; autocast would run fp32 reductions in 16 bit."""
    return torch.autocast(tensor.device.type, enabled=False)


# Autograd around the chunks.


class _LinearLoss(torch.autograd.Function):
    """Sum of the loss over num_items; the gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: TokenLoss,
        call: Call,
        num_items: int | Tensor,
    ) -> tuple[Tensor, ...]:
        """Objective, then the statistics in the order of the request."""
        needs = tuple(n and call.grad_enabled for n in ctx.needs_input_grad[:3])
        over = Pass.allocate(hidden, weight, bias, call, needs)
        objective = torch.zeros((), dtype=over.dtype, device=hidden.device)
        for group in call.groups:
            objective += _objective_of(group, over, loss, num_items)
        statistics = over.statistics()
        ctx.gradients = over.gradients()
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return (objective, *statistics)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Scale what forward computed, and hand it over."""
        if upstream is None:
            return (None,) * 6
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
        return (*gradients, None, None, None)


class _LinearTokenStatistics(torch.autograd.Function):
    """Statistics forward; backward recomputes each chunk and applies the upstream vectors."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> tuple[Tensor, ...]:
        """The statistics in the order of the request."""
        over = Pass.allocate(hidden, weight, bias, call, (False, False, False))
        for span in call.chunks:
            over.fold(span)
        statistics = over.statistics()
        ctx.save_for_backward(hidden, weight, bias)
        # Inputs live in saved tensors (version-checked); the call must not keep the graph alive.
        ctx.call = replace(call, hidden=hidden.detach())
        constant = [
            value
            for name, value in zip(call.request.options, statistics, strict=True)
            if STATISTICS[name].add_gradient is None
        ]
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        return statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias."""
        hidden, weight, bias = ctx.saved_tensors
        wanted = {
            name: gradient
            for name, gradient in zip(ctx.call.request.options, upstream, strict=True)
            if gradient is not None
        }
        if not wanted:
            return (None,) * 4
        over = Pass.allocate(hidden, weight, bias, ctx.call, ctx.needs_input_grad[:3])
        with _no_autocast(hidden):
            for span in ctx.call.chunks:
                blocks = over.fold(span)
                over.add_gradients(span, blocks, {n: g[span] for n, g in wanted.items()})
        return (*over.gradients(), None)


def _objective_of(
    group: Group, over: Pass, loss: TokenLoss, num_items: int | Tensor
) -> Tensor | float:
    """A group's share of the objective; its share of the gradients is added to the pass's."""
    objective: Tensor | float = 0.0
    blocks = over.fold_and_weigh(group)
    for span in group.spans:
        if len(group.spans) > 1:
            blocks = over.fold(span)
        value, upstream = _evaluate(
            loss,
            {name: values[span] for name, values in over.values.items()},
            None if over.call.advantages is None else over.call.advantages[span],
            num_items,
            over.wants_gradient,
        )
        objective = value + objective
        if over.wants_gradient and span.start < over.call.moving:
            over.add_gradients(span, blocks, upstream)
    return objective


def _evaluate(
    loss: TokenLoss,
    values: dict[str, Tensor],
    advantages: Tensor | None,
    num_items: int | Tensor,
    wants_gradient: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A chunk's share of the objective, a scalar, and its derivatives by the chunk's statistics."""
    leaves = {
        name: value.detach().clone().requires_grad_(wants_gradient)
        for name, value in values.items()
        if STATISTICS[name].add_gradient is not None
    }
    scored = torch.ones_like(values["is_top1"])
    statistics = TokenStatistics(scored=scored, advantage=advantages, **{**values, **leaves})
    with torch.enable_grad():
        per_token = loss(statistics)
        share = token_mean(per_token.sum(), num_items)
    if per_token.shape != scored.shape:
        raise ValueError(
            f"the loss returned shape {tuple(per_token.shape)} for {scored.numel()} tokens; "
            "it must return one value per token"
        )
    if not (wants_gradient and per_token.requires_grad):
        return share.detach(), {}
    gradients = torch.autograd.grad(share, list(leaves.values()), allow_unused=True)
    upstream = {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}
    return share.detach(), upstream
