"""The head: losses and statistics of (hidden states, head weight), never holding ``[N, V]`` logits.

A chunk of tokens at a time, and top to bottom in this file,

    logits       z = h W^T                                    `_Pass.fold`
    statistics   of each block of rows that fits the cache    `_Pass.fold`, ``statistics.py``
    loss         on them as leaves; autograd gives dL/dstat   `_evaluate`
    dlogits      each statistic's terms of dL/dz, in place    `_Pass.add_gradients`, ``blocks.py``
    products     dh = dz W,  dW += dz^T h                     `_Pass.add_gradients`

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

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import Block, LogitGradient, LogitTransform
from .inputs import (
    IGNORE_INDEX,
    check_advantages,
    check_labels,
    nonfinite_message,
    statistics_dtype,
)
from .reduction import token_mean
from .reference import ReferenceHead, ReferenceTopK, finite_bias
from .request import StatisticsRequest, TokenStatistics
from .statistics import STATISTICS

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
    reference: ReferenceHead | ReferenceTopK | None = None,
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
        temperature: above 0; divides the logits.
        softcap: ``c * tanh(logits / c)``, or None.
        logit_scale: factor on the raw products, before the cap.
        reference: hidden states and head of a reference model at the same positions, for losses
            that ask for ``reference_kl`` or ``reference_log_prob``: one more matrix product and one
            more chunk of logits, no gradient. Or its most likely tokens: no product.
        advantages: ``[...]``, the labels' shape, for losses that weight tokens by them; see
            `group_advantages` and `sequence_weights`.
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
    request = getattr(loss, "request", None) or StatisticsRequest()
    if not isinstance(request, StatisticsRequest):
        raise ValueError(
            f"{type(loss).__name__}.request is {request!r}; it must be a StatisticsRequest"
        )
    transform = LogitTransform(logit_scale, softcap, temperature)
    _check_head(hidden, weight, labels, bias)
    call = _Call.of(hidden, weight, labels, request, transform, reference, advantages, chunk_size)
    count = call.labels.numel() if num_items is None else num_items
    with _no_autocast(hidden):
        objective, *values = _LinearLoss.apply(call.hidden, weight, bias, loss, call, count)
    return objective, call.unflatten(values)


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
    transform = LogitTransform(logit_scale, softcap, temperature)
    _check_head(hidden, weight, labels, bias)
    call = _Call.of(hidden, weight, labels, request, transform, reference, advantages, chunk_size)
    return call.unflatten(_LinearTokenStatistics.apply(call.hidden, weight, bias, call))


# A call: checked, its ignored tokens taken out, its chunk chosen.


def _check_head(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    """Refuse shapes and dtypes that do not match."""
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
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},)")
    if torch.is_autocast_enabled(hidden.device.type):
        return
    if hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; cast one of them, or run "
            "under torch.autocast"
        )
    if not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden is {hidden.dtype}; it must be a floating dtype")


@dataclass(frozen=True)
class _Call:
    """A checked call; ``n`` is its number of scored tokens."""

    hidden: Tensor  # [n, H]
    labels: Tensor  # [n]
    scored: Tensor  # the caller's shape
    request: StatisticsRequest
    reference: ReferenceHead | ReferenceTopK | None  # of the scored tokens
    advantages: Tensor | None  # [n]
    compute_dtype: torch.dtype
    chunk_size: int
    # Inside autograd.Function.forward, needs_input_grad ignores no_grad: remember the caller's
    # mode.
    grad_enabled: bool
    transform: LogitTransform

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        request: StatisticsRequest,
        transform: LogitTransform,
        reference: ReferenceHead | ReferenceTopK | None,
        advantages: Tensor | None,
        chunk_size: int | None,
    ) -> _Call:
        """`linear_loss` documents the arguments and what is refused."""
        vocabulary, device_type = weight.shape[0], hidden.device.type
        check_labels(labels, vocabulary)
        request.check(vocabulary, reference)
        check_advantages(advantages, labels)
        if reference is not None:
            reference.check(labels, vocabulary)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be an integer >= 1")
        scored = labels != IGNORE_INDEX
        kept = labels[scored]
        autocast = torch.is_autocast_enabled(device_type)
        compute_dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
        dtype = statistics_dtype(compute_dtype)
        row_bytes = vocabulary * dtype.itemsize
        return cls(
            hidden=hidden[scored],
            labels=kept,
            scored=scored,
            request=request,
            transform=transform,
            reference=None if reference is None else reference.at(scored, compute_dtype),
            advantages=None if advantages is None else advantages.detach()[scored].to(dtype),
            compute_dtype=compute_dtype,
            chunk_size=chunk_size or _even_chunk(len(kept), row_bytes, device_type),
            grad_enabled=torch.is_grad_enabled(),
        )

    def unflatten(self, values: Any) -> TokenStatistics:
        """Statistics of the scored tokens, put back into the labels' shape with zeros elsewhere."""

        def spread(of_scored: Tensor) -> Tensor:
            return of_scored.new_zeros(self.scored.shape).masked_scatter(self.scored, of_scored)

        by_name = {n: spread(v) for n, v in zip(self.request.options, values, strict=True)}
        advantage = None if self.advantages is None else spread(self.advantages)
        return TokenStatistics(scored=self.scored, advantage=advantage, **by_name)


def _even_chunk(tokens: int, row_bytes: int, device_type: str) -> int:
    """Tokens per chunk: the fewest chunks that fit the budget, all of about the same size."""
    most = max(1, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["default"]) // row_bytes)
    return max(1, math.ceil(tokens / math.ceil(max(tokens, 1) / most)))


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
        call: _Call,
        num_items: int | Tensor,
    ) -> tuple[Tensor, ...]:
        """Objective, then the statistics in the order of the request."""
        needs = tuple(n and call.grad_enabled for n in ctx.needs_input_grad[:3])
        over = _Pass.allocate(hidden, weight, bias, call, needs)
        objective = torch.zeros((), dtype=over.dtype, device=hidden.device)
        for span in over.chunks():
            blocks = over.fold(span)
            advantages = None if call.advantages is None else call.advantages[span]
            value, upstream = _evaluate(
                loss,
                {name: values[span] for name, values in over.values.items()},
                advantages,
                num_items,
                over.wants_gradient,
            )
            objective += value
            if over.wants_gradient:
                over.add_gradients(span, blocks, upstream)
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
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call
    ) -> tuple[Tensor, ...]:
        """The statistics in the order of the request."""
        over = _Pass.allocate(hidden, weight, bias, call, (False, False, False))
        for span in over.chunks():
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
        over = _Pass.allocate(hidden, weight, bias, ctx.call, ctx.needs_input_grad[:3])
        with _no_autocast(hidden):
            for span in over.chunks():
                blocks = over.fold(span)
                over.add_gradients(span, blocks, {n: g[span] for n, g in wanted.items()})
        return (*over.gradients(), None)


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


# The chunks.


@dataclass
class _Pass:
    """One pass over the tokens: a buffer of logits, the statistics so far, three gradient sums."""

    hidden: Tensor  # [n, H]
    weight: Tensor  # compute dtype
    bias: Tensor | None
    call: _Call
    dtype: torch.dtype  # of statistics and logits
    logits: Tensor  # [chunk, V]
    scratch: Tensor  # [block, V]
    reference_logits: Tensor | None  # [chunk, V]
    values: dict[str, Tensor]  # statistics, [n]
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    out_dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None]

    @classmethod
    def allocate(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call, needs: Any
    ) -> _Pass:
        """Buffers for a call; ``needs`` says which of hidden, weight and bias want gradients."""
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
            hidden=hidden.detach(),
            weight=weight.detach().to(call.compute_dtype),
            bias=finite_bias(bias, dtype),
            call=call,
            dtype=dtype,
            logits=buffer(chunk, vocabulary),
            scratch=buffer(block, vocabulary),
            reference_logits=buffer(chunk, vocabulary)
            if isinstance(call.reference, ReferenceHead)
            else None,
            values={
                name: torch.empty(
                    tokens, dtype=STATISTICS[name].dtype or dtype, device=hidden.device
                )
                for name in call.request.options
            },
            grad_hidden=sum_for(hidden, needs[0]),
            grad_weight=sum_for(weight, needs[1]),
            grad_bias=sum_for(bias, needs[2]),
            out_dtypes=(hidden.dtype, weight.dtype, None if bias is None else bias.dtype),
        )

    @property
    def wants_gradient(self) -> bool:
        """Whether any input needs a gradient."""
        return any(g is not None for g in (self.grad_hidden, self.grad_weight, self.grad_bias))

    def chunks(self) -> Iterator[slice]:
        """Tokens whose logits share the buffer, in order."""
        tokens, size = self.hidden.shape[0], self.call.chunk_size
        for start in range(0, tokens, size):
            yield slice(start, min(start + size, tokens))

    def fold(self, span: slice) -> list[Block]:
        """Compute a chunk's logits and statistics; its blocks hold s = z - m afterwards."""
        call = self.call
        logits = self.logits[: span.stop - span.start]
        _write_logits(self.hidden[span].to(call.compute_dtype), self.weight, self.bias, out=logits)
        call.transform.apply_(logits)
        reference_logits = None
        if isinstance(call.reference, ReferenceHead):
            assert self.reference_logits is not None
            reference_logits = self.reference_logits[: len(logits)]
            _write_logits(
                call.reference.hidden[span],
                call.reference.weight,
                call.reference.bias,
                out=reference_logits,
            )
            call.transform.apply_(reference_logits)
        blocks = []
        for rows in self._block_rows(span):
            at = slice(span.start + rows.start, span.start + rows.stop)
            block = Block.of(
                logits[rows],
                call.labels[at],
                self.scratch[: rows.stop - rows.start],
                call.request.likeliest,
                None if reference_logits is None else reference_logits[rows],
                call.reference.rows(at) if isinstance(call.reference, ReferenceTopK) else None,
            )
            for name, option in call.request.options.items():
                self.values[name][at] = STATISTICS[name].fold(block, option)
            blocks.append(block)
        return blocks

    def add_gradients(self, span: slice, blocks: list[Block], upstream: dict[str, Tensor]) -> None:
        """Turn a chunk's logits into dL/dz and add its share of the three gradients.

        Args:
            span: the chunk.
            blocks: what `fold` returned for it, just before.
            upstream: dL/dstatistic of its tokens, by name.

        """
        call = self.call
        for block, rows in zip(blocks, self._block_rows(span), strict=True):
            terms = LogitGradient(block)
            for name, gradient in upstream.items():
                add_gradient = STATISTICS[name].add_gradient
                assert add_gradient is not None
                value, option = self.values[name][span][rows], call.request.options[name]
                add_gradient(terms, value, gradient[rows], option)
            terms.write_(call.transform)
        gradient = self.logits[: span.stop - span.start]
        if self.grad_bias is not None:
            self.grad_bias += gradient.sum(0)
        if self.grad_hidden is not None:
            _matmul_out(gradient.to(call.compute_dtype), self.weight, out=self.grad_hidden[span])
        if self.grad_weight is not None:
            inputs = self.hidden[span].to(call.compute_dtype)
            _accumulate_product(self.grad_weight, gradient, inputs, first=span.start == 0)

    def statistics(self) -> tuple[Tensor, ...]:
        """The statistics of all tokens in the order of the request; refuses NaN and +inf."""
        # Once for all chunks: on a GPU each look waits for the device.
        if not bool(torch.isfinite(self.values["log_prob"] + self.values["entropy"]).all()):
            raise ValueError(nonfinite_message("the logits of this head"))
        return tuple(self.values.values())

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias in their dtypes."""
        sums = (self.grad_hidden, self.grad_weight, self.grad_bias)
        return tuple(
            None if g is None or dtype is None else g.to(dtype)
            for g, dtype in zip(sums, self.out_dtypes, strict=True)
        )

    def _block_rows(self, span: slice) -> Iterator[slice]:
        """Rows of a chunk that fit the cache together."""
        count, size = span.stop - span.start, self.scratch.shape[0]
        for first in range(0, count, size):
            yield slice(first, min(first + size, count))


# The products.


def _write_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """``out = hidden @ weight.T + bias``."""
    one_dnn = hidden.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if hidden.device.type != "cpu" or not one_dnn:
        _matmul_out(hidden, weight.t(), out=out)
    else:
        packed = hidden.to_mkldnn()
        for first in range(0, weight.shape[0], _TILE_COLUMNS_CPU):
            columns = slice(first, first + _TILE_COLUMNS_CPU)
            out[:, columns] = functional.linear(packed, weight[columns]).to_dense()
    if bias is not None:
        out.add_(bias)


def _matmul_out(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """``out = a @ b`` where ``out`` may be fp32 for 16-bit factors."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif _multiplies_into_fp32(a.device):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _accumulate_product(total: Tensor, gradient: Tensor, hidden: Tensor, *, first: bool) -> None:
    """``total += gradient.T @ hidden`` without rounding a chunk's share to 16 bit first.

    The first chunk overwrites ``total``, which saves filling 545 MB with zeros.
    """
    beta = 0.0 if first else 1.0
    if hidden.dtype != total.dtype and _multiplies_into_fp32(hidden.device):
        share = gradient.to(hidden.dtype).t()
        torch.addmm(total, share, hidden, beta=beta, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(gradient.t(), hidden.to(total.dtype), beta=beta)


def _multiplies_into_fp32(device: torch.device) -> bool:
    """Whether 16-bit products with fp32 results exist: CUDA from Ampere on (not T4, V100, ROCm)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
