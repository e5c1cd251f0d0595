"""The matrix products of a language-model head, a chunk of tokens at a time.

`HeadProducts` holds one buffer of logits and the sums of the gradients; a `HeadChunk` folds its
logits into statistics, then turns them, in place, into its share of the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .base_anchor import BaseHead, BaseTopK, finite_bias
from .head_call import HeadCall
from .logit_blocks import (
    BaseFew,
    BlockStatistics,
    Upstream,
    concatenate,
    logit_gradient_,
    rows_of,
    shift_and_fold,
)
from .statistics import nonfinite_message, statistics_dtype

# Element-wise passes run over blocks of rows that stay in the cores' L2 caches: 10 rows x 49,152 x
# 4 bytes are 2 MB. On other devices kernel launches cost more than memory passes: block = chunk.
_BLOCK_BYTES_CPU = 2 * 2**20
# On a CPU oneDNN writes fp32 logits through tiles of this many columns: the buffer's rows lie V
# apart, and one product straight into it took 1.1 to 1.2x the time at both of the bench's shapes.
_TILE_COLUMNS_CPU = 768


@dataclass
class HeadProducts:
    """The head's matrix products: a logits buffer, a scratch block, three gradient sums."""

    weight: Tensor  # compute dtype
    bias: Tensor | None
    call: HeadCall
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
        call: HeadCall,
        needs: Any,
    ) -> HeadProducts:
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

    def chunks(self, hidden: Tensor, labels: Tensor) -> Iterator[HeadChunk]:
        """Chunks of tokens in order; each reuses the logits buffer of the one before."""
        hidden = hidden.detach()
        for start in range(0, hidden.shape[0], self.call.chunk_size):
            stop = min(start + self.call.chunk_size, hidden.shape[0])
            inputs = hidden[start:stop].to(self.call.compute_dtype)
            yield HeadChunk(self, start, stop, inputs, labels[start:stop])

    def results(self) -> tuple[Tensor | None, ...]:
        """The accumulated gradients in their inputs' dtypes."""
        gradients = (self.grad_hidden, self.grad_weight, self.grad_bias)
        return tuple(
            None if g is None or dtype is None else g.to(dtype)
            for g, dtype in zip(gradients, self.out_dtypes, strict=True)
        )


@dataclass
class HeadChunk:
    """Tokens [start, stop): fold logits into statistics, then their gradient into the sums."""

    products: HeadProducts
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
