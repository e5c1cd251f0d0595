"""Token statistics and losses from (hidden states, head weight), never holding ``[N, V]`` logits.

`linear_loss` trains. Logits exist one chunk of tokens at a time; while a chunk is there, its
statistics become leaves, the loss is evaluated on them, autograd gives dL/dstatistic, and the
formula in ``logit_blocks.py`` turns the chunk's logits into dL/dz in place. Three matrix products
(z = h W^T, dh = dz W, dW += dz^T h), the floor for this computation; two when the head or the
hidden states are frozen, one when both are. Backward only scales what is already there.

`linear_token_statistics` is the differentiable variant, for callers who need per-token upstream
gradients: it keeps one number per token and recomputes the chunks in backward (four products).

Precision: products accumulate in fp32 inside the matrix product; softmax, log-sum-exp, entropy
and the gradient of the weight across chunks are fp32 (fp64 for fp64 input). On CUDA, 16-bit
products are returned in fp32; on a CPU they are rounded once to the input's dtype, as the model's
own forward does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .base_anchor import BaseHead, BaseTopK, check_base_shapes, finite_bias, scored_base
from .logit_blocks import (
    BaseFew,
    BlockStatistics,
    LogitTransform,
    Upstream,
    concatenate,
    logit_gradient_,
    rows_of,
    shift_and_fold,
)
from .reduction import token_mean
from .statistics import (
    IGNORE_INDEX,
    StatisticsRequest,
    TokenStatistics,
    check_advantages,
    check_base,
    check_head_options,
    check_labels,
    check_top_k,
    nonfinite_message,
    statistics_dtype,
)

TokenLoss = Callable[[TokenStatistics], Tensor]


# Logits of one chunk, in bytes. At (1024, 896, 151,936) in fp32 on two cores, two chunks of 512
# tokens (297 MiB) took 1.05x the three bare products, three chunks 1.09x and five 1.29x: the
# weight's gradient, 545 MB, is read and written once per chunk. `make bench` shows it.
_CHUNK_BYTES = {"cpu": 320 * 2**20, "default": 512 * 2**20}
# Element-wise passes run over blocks of rows that stay in the cores' L2 caches: 10 rows x 49,152 x
# 4 bytes are 2 MB. On other devices kernel launches cost more than memory passes: block = chunk.
_BLOCK_BYTES_CPU = 2 * 2**20
# On a CPU oneDNN writes fp32 logits through tiles of this many columns: the buffer's rows lie V
# apart, and one product straight into it took 1.1 to 1.2x the time at both of the bench's shapes.
_TILE_COLUMNS_CPU = 768


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
    base: BaseHead | BaseTopK | None = None,
    advantages: Tensor | None = None,
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
        temperature: > 0, divides the logits.
        softcap: ``c * tanh(logits / c)``, or None.
        logit_scale: factor on the raw products, before the cap.
        base: hidden states and head of a base model at the same positions, for losses that ask for
            ``base_kl``: one more matrix product and one more chunk of logits, no gradient. Or its
            most likely tokens, for the forward KL alone: no product.
        advantages: ``[...]``, the labels' shape, for losses that weight tokens by them.
        chunk_size: tokens per chunk; default: even chunks of at most 320 MiB of logits (512 MiB on
            accelerators).

    Returns:
        (loss, statistics): a scalar (fp32; fp64 for fp64 input) that carries gradients to hidden,
        weight and bias, and detached `TokenStatistics` in the labels' shape. With no scored token
        the loss is 0 and the graph is alive. Backward may run once: gradients are handed over,
        not copied.

    Raises:
        ValueError: shapes or dtypes that do not match, labels out of range, k > V, NaN logits.

    """
    request = _request_of(loss)
    call = _Call.prepare(
        hidden,
        weight,
        labels,
        bias,
        request,
        LogitTransform(logit_scale, softcap, temperature),
        base,
        advantages,
        chunk_size,
    )
    count = call.labels.numel() if num_items is None else num_items
    with _no_autocast(hidden):
        objective, *flat = _LinearLoss.apply(
            call.hidden, weight, bias, call.labels, loss, call, count
        )
    return objective, call.unflatten(flat)


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
    base: BaseHead | BaseTopK | None = None,
    advantages: Tensor | None = None,
    chunk_size: int | None = None,
) -> TokenStatistics:
    """`token_statistics` of ``hidden @ weight.T + bias`` without logits, differentiable per token.

    Arguments are `linear_loss`'s; ``request`` (or ``top_k``) says what to compute. Any upstream
    gradients, uniform or not, are honoured; backward recomputes the chunks.
    """
    request = request or StatisticsRequest(top_k=top_k)
    call = _Call.prepare(
        hidden,
        weight,
        labels,
        bias,
        request,
        LogitTransform(logit_scale, softcap, temperature),
        base,
        advantages,
        chunk_size,
    )
    return call.unflatten(
        _LinearTokenStatistics.apply(call.hidden, weight, bias, call.labels, call)
    )


@dataclass(frozen=True)
class _Call:
    """A validated call with ignored tokens taken out."""

    hidden: Tensor  # [n, H], scored tokens only
    labels: Tensor  # [n]
    scored: Tensor  # the caller's shape
    request: StatisticsRequest
    transform: LogitTransform
    base: BaseHead | BaseTopK | None  # scored tokens only, compute dtype
    advantages: Tensor | None  # [n]
    compute_dtype: torch.dtype
    chunk_size: int
    # Inside autograd.Function.forward, needs_input_grad ignores no_grad: remember the caller's
    # mode.
    grad_enabled: bool

    @classmethod
    def prepare(
        cls,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        request: StatisticsRequest,
        transform: LogitTransform,
        base: BaseHead | BaseTopK | None,
        advantages: Tensor | None,
        chunk_size: int | None,
    ) -> _Call:
        check_head_options(transform.temperature, transform.softcap, transform.logit_scale)
        if weight.ndim != 2 or hidden.ndim < 2 or hidden.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
                "they must be [..., H] and [V, H]"
            )
        if hidden.shape[:-1] != labels.shape:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)} and labels {tuple(labels.shape)}; "
                "labels must have hidden's leading dimensions (this function does not shift them)"
            )
        vocabulary = weight.shape[0]
        if bias is not None and bias.shape != (vocabulary,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({vocabulary},)")
        device_type = hidden.device.type
        if torch.is_autocast_enabled(device_type):
            compute_dtype = torch.get_autocast_dtype(device_type)
        elif hidden.dtype == weight.dtype:
            compute_dtype = hidden.dtype
        else:
            raise ValueError(
                f"hidden is {hidden.dtype} and weight {weight.dtype}; cast one of them, or run "
                "under torch.autocast"
            )
        if not compute_dtype.is_floating_point:
            raise ValueError(f"hidden is {compute_dtype}; it must be a floating dtype")
        check_labels(labels, vocabulary)
        check_top_k(max(request.top_k, request.support_k or 1), vocabulary)
        check_base(request, base is not None)
        check_advantages(advantages, labels)
        if base is not None:
            check_base_shapes(base, labels, vocabulary, request)
        scored = labels != IGNORE_INDEX
        if chunk_size is None:
            chunk_size = _even_chunk(int(scored.sum()), vocabulary, device_type, compute_dtype)
        elif chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be an integer >= 1")
        return cls(
            hidden=hidden[scored],
            labels=labels[scored],
            scored=scored,
            request=request,
            transform=transform,
            base=scored_base(base, scored, compute_dtype),
            advantages=None
            if advantages is None
            else advantages.detach()[scored].to(statistics_dtype(compute_dtype)),
            compute_dtype=compute_dtype,
            chunk_size=chunk_size,
            grad_enabled=torch.is_grad_enabled(),
        )

    def unflatten(self, flat: Any) -> TokenStatistics:
        """Statistics of the scored tokens, put back into the labels' shape with zeros elsewhere."""

        def spread(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return values.new_zeros(self.scored.shape).masked_scatter(self.scored, values)

        names = _STATISTIC_NAMES
        spread_out = {name: spread(values) for name, values in zip(names, flat, strict=True)}
        spread_out["advantage"] = spread(self.advantages)
        return TokenStatistics(scored=self.scored, **spread_out)  # type: ignore[arg-type]


_STATISTIC_NAMES = (
    "log_prob",
    "entropy",
    "top_k_mass",
    "is_top1",
    "mean_log_prob",
    "tempered_log_prob",
    "support_entropy",
    "base_kl",
)
_DIFFERENTIABLE = tuple(f.name for f in fields(Upstream))


class _LinearLoss(torch.autograd.Function):
    """Sum of the loss over num_items; the gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        loss: TokenLoss,
        call: _Call,
        num_items: int | Tensor,
    ) -> tuple[Tensor | None, ...]:
        needs = tuple(n and call.grad_enabled for n in ctx.needs_input_grad[:3])
        products = _Products.allocate(hidden, weight, bias, call, needs)
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


class _LinearTokenStatistics(torch.autograd.Function):
    """Statistics forward; backward recomputes each chunk and applies the upstream vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        call: _Call,
    ) -> tuple[Tensor | None, ...]:
        products = _Products.allocate(hidden, weight, bias, call, (False, False, False))
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
        hidden, weight, bias, labels = ctx.saved_tensors
        by_name = dict(zip(_STATISTIC_NAMES, upstream, strict=True))
        wanted = Upstream(**{name: by_name[name] for name in _DIFFERENTIABLE})
        if all(by_name[name] is None for name in _DIFFERENTIABLE):
            return (None,) * 5
        products = _Products.allocate(hidden, weight, bias, ctx.call, ctx.needs_input_grad[:3])
        with _no_autocast(hidden):
            for chunk in products.chunks(hidden, labels):
                chunk.accumulate(chunk.fold(), rows_of(wanted, slice(chunk.start, chunk.stop)))
        return (*products.results(), None, None)


@dataclass
class _Products:
    """The head's matrix products: a logits buffer, a scratch block, three gradient sums."""

    weight: Tensor  # compute dtype
    bias: Tensor | None
    call: _Call
    dtype: torch.dtype  # of statistics and logits
    logits: Tensor  # [chunk, V]
    scratch: Tensor  # [block, V]
    base_logits: Tensor | None  # [chunk, V]
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    out_dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None]

    @classmethod
    def allocate(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: _Call,
        needs: Any,
    ) -> _Products:
        dtype = statistics_dtype(call.compute_dtype)
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        chunk = min(call.chunk_size, max(tokens, 1))
        block = chunk
        if hidden.device.type == "cpu":
            block = min(chunk, max(1, _BLOCK_BYTES_CPU // (vocabulary * dtype.itemsize)))

        def buffer(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden.device)

        def sum_for(tensor: Tensor | None, needed: bool) -> Tensor | None:
            if tensor is None or not needed:
                return None
            # Rows of hidden and the weight are written before they are read, unless there are none.
            make = torch.zeros_like if tensor.ndim == 1 or tokens == 0 else torch.empty_like
            return make(tensor, dtype=dtype)

        return cls(
            weight=weight.detach().to(call.compute_dtype),
            bias=finite_bias(bias, dtype),
            call=call,
            dtype=dtype,
            logits=buffer(chunk, vocabulary),
            scratch=buffer(block, vocabulary),
            base_logits=buffer(chunk, vocabulary) if isinstance(call.base, BaseHead) else None,
            grad_hidden=sum_for(hidden, needs[0]),
            grad_weight=sum_for(weight, needs[1]),
            grad_bias=sum_for(bias, needs[2]),
            out_dtypes=(hidden.dtype, weight.dtype, None if bias is None else bias.dtype),
        )

    @property
    def wants_gradient(self) -> bool:
        """Whether any input needs a gradient."""
        return any(g is not None for g in (self.grad_hidden, self.grad_weight, self.grad_bias))

    def chunks(self, hidden: Tensor, labels: Tensor) -> Iterator[_Chunk]:
        """Chunks of tokens in order; each reuses the logits buffer of the one before."""
        hidden = hidden.detach()
        for start in range(0, hidden.shape[0], self.call.chunk_size):
            stop = min(start + self.call.chunk_size, hidden.shape[0])
            inputs = hidden[start:stop].to(self.call.compute_dtype)
            yield _Chunk(self, start, stop, inputs, labels[start:stop])

    def results(self) -> tuple[Tensor | None, ...]:
        """The accumulated gradients in their inputs' dtypes."""
        gradients = (self.grad_hidden, self.grad_weight, self.grad_bias)
        return tuple(
            None if g is None or dtype is None else g.to(dtype)
            for g, dtype in zip(gradients, self.out_dtypes, strict=True)
        )


@dataclass
class _Chunk:
    """Tokens [start, stop): fold logits into statistics, then their gradient into the sums."""

    products: _Products
    start: int
    stop: int
    hidden: Tensor
    labels: Tensor

    def fold(self) -> BlockStatistics:
        """Compute the chunk's logits and statistics; the buffer holds s = z - m afterwards."""
        products, call = self.products, self.products.call
        logits = products.logits[: self.stop - self.start]
        _write_logits(self.hidden, products.weight, logits, products.bias)
        call.transform.apply_(logits)
        if isinstance(call.base, BaseHead):
            assert products.base_logits is not None
            base_logits = products.base_logits[: self.stop - self.start]
            base_hidden = call.base.hidden[self.start : self.stop]
            _write_logits(base_hidden, call.base.weight, base_logits, call.base.bias)
            call.transform.apply_(base_logits)
        blocks = [
            shift_and_fold(rows, self.labels[span], call.request, scratch, base, few)
            for span, rows, scratch, base, few in self._blocks()
        ]
        folded = concatenate(blocks)
        if not bool(torch.isfinite(folded.log_sum + folded.entropy).all()):
            raise ValueError(nonfinite_message("the logits of this head"))
        return folded

    def accumulate(self, folded: BlockStatistics, upstream: Upstream) -> None:
        """Turn the buffer into dL/dz and add this chunk's share of the three gradients."""
        products, call = self.products, self.products.call
        gradient = products.logits[: self.stop - self.start]
        for span, rows, scratch, base, few in self._blocks():
            logit_gradient_(
                rows,
                self.labels[span],
                rows_of(folded, span),
                rows_of(upstream, span),
                call.request,
                call.transform,
                scratch,
                base,
                few,
            )
        if products.grad_bias is not None:
            products.grad_bias += gradient.sum(0)
        if products.grad_hidden is not None:
            target = products.grad_hidden[self.start : self.stop]
            _matmul_out(gradient.to(call.compute_dtype), products.weight, target)
        if products.grad_weight is not None:
            _accumulate_product(products.grad_weight, gradient, self.hidden, first=self.start == 0)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None, BaseFew | None]]:
        """Rows that fit the cache: their span, logits, scratch, and what the base is given by."""
        products, base = self.products, self.products.call.base
        count, size = self.stop - self.start, products.scratch.shape[0]
        for first in range(0, count, size):
            span = slice(first, min(first + size, count))
            full = None if products.base_logits is None else products.base_logits[span]
            few = None
            if isinstance(base, BaseTopK):
                place = slice(self.start + span.start, self.start + span.stop)
                few = BaseFew(base.indices[place], base.log_probs[place])
            yield span, products.logits[span], products.scratch[: span.stop - first], full, few


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


def _even_chunk(tokens: int, vocabulary: int, device_type: str, dtype: torch.dtype) -> int:
    """Tokens per chunk: the fewest chunks that fit the budget, all of about the same size."""
    budget = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["default"])
    most = max(1, budget // (vocabulary * statistics_dtype(dtype).itemsize))
    return max(1, math.ceil(tokens / math.ceil(max(tokens, 1) / most)))


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """The compute dtype is chosen already; autocast would run fp32 reductions in 16 bit."""
    return torch.autocast(tensor.device.type, enabled=False)


def _write_logits(hidden: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None) -> None:
    """``out = hidden @ weight.T + bias``."""
    one_dnn = hidden.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if hidden.device.type != "cpu" or not one_dnn:
        _matmul_out(hidden, weight.t(), out)
    else:
        packed = hidden.to_mkldnn()
        for first in range(0, weight.shape[0], _TILE_COLUMNS_CPU):
            span = slice(first, first + _TILE_COLUMNS_CPU)
            out[:, span] = functional.linear(packed, weight[span]).to_dense()
    if bias is not None:
        out.add_(bias)


def _matmul_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` where ``out`` may be fp32 for 16-bit factors."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _accumulate_product(total: Tensor, gradient: Tensor, hidden: Tensor, *, first: bool) -> None:
    """``total += gradient.T @ hidden`` without rounding a chunk's share to 16 bit first.

    The first chunk overwrites ``total``, which saves filling 545 MB with zeros.
    """
    beta = 0.0 if first else 1.0
    if hidden.is_cuda and hidden.dtype != total.dtype:
        share = gradient.to(hidden.dtype).t()
        torch.addmm(total, share, hidden, beta=beta, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(gradient.t(), hidden.to(total.dtype), beta=beta)


def _flat_statistics(
    parts: list[BlockStatistics], request: StatisticsRequest, products: _Products
) -> tuple[Tensor | None, ...]:
    """Statistics of all chunks in the order of `_STATISTIC_NAMES`; empty vectors for no tokens."""
    if parts:
        joined = concatenate(parts)
        return tuple(getattr(joined, name) for name in _STATISTIC_NAMES)
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


def _request_of(loss: Any) -> StatisticsRequest:
    request = getattr(loss, "request", None) or StatisticsRequest()
    if not isinstance(request, StatisticsRequest):
        raise ValueError(
            f"{type(loss).__name__}.request is {request!r}; it must be a StatisticsRequest"
        )
    return request
