"""The chunks of a call: logits, statistics and gradients, a chunk of tokens at a time.

logits       z = h W^T                                    `Pass.fold`, ``products.py``
statistics   of each block of rows                        `Pass.fold`, ``statistics.py``
dlogits      each statistic's terms of dL/dz, in place    `Pass.add_gradients`, ``blocks.py``
products     dh = dz W,  dW += dz^T h                     `Pass.add_gradients`, ``products.py``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import Block
from .call import Call, Group
from .inputs import (
    ReferenceHead,
    ReferenceTopK,
    finite_bias,
    nonfinite_message,
    statistics_dtype,
)
from .kernel_block import Kernels, kernels_for
from .products import add_products, write_logits
from .statistics import STATISTICS

# Element-wise passes run over blocks of rows. On a CPU they stay in the cores' L2 caches: 10 rows x
# 49,152 x 4 bytes are 2 MB. Elsewhere a block is large beside a kernel's launch (128 MiB take 40
# microseconds at 3 TB/s), and its scratch is small beside a chunk.
_BLOCK_BYTES = {"cpu": 2 * 2**20, "default": 128 * 2**20}


@dataclass
class Pass:
    """One pass over the tokens: a buffer of logits, the statistics so far, three gradient sums."""

    hidden: Tensor  # [n, H]
    weight: Tensor  # compute dtype
    bias: Tensor | None
    call: Call
    dtype: torch.dtype  # of statistics and logits
    logits: Tensor  # [chunk, V]
    kernels: Kernels | None  # None: torch computes
    block_size: int  # tokens
    scratch: Tensor | None  # [block, V]; kernels need none
    reference_logits: Tensor | None  # [chunk, V]
    values: dict[str, Tensor]  # statistics, [n]
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    out_dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None]

    @classmethod
    def allocate(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call, needs: Any
    ) -> Pass:
        """Buffers for a call; ``needs`` says which of hidden, weight and bias want gradients."""
        dtype = statistics_dtype(call.compute_dtype)
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        chunk = call.largest_chunk
        of_block = _BLOCK_BYTES.get(hidden.device.type, _BLOCK_BYTES["default"])
        block = min(chunk, max(1, of_block // (vocabulary * dtype.itemsize)))
        weight_used = weight.detach().to(call.compute_dtype)
        has_base = isinstance(call.reference, ReferenceHead)
        kernels = kernels_for(call.request, call.transform, weight_used, has_base=has_base)

        def buffer(rows: int) -> Tensor:
            # Rows of kernels begin where memory is read at once, whatever the vocabulary.
            columns = vocabulary if kernels is None else -(-vocabulary // 16) * 16
            whole = torch.empty(rows, columns, dtype=dtype, device=hidden.device)
            return whole[:, :vocabulary]

        def sum_for(tensor: Tensor | None, needed: bool) -> Tensor | None:
            if tensor is None or not needed:
                return None
            # Rows of hidden and the weight are written before they are read, unless there are none.
            written = tensor.ndim == 2 and call.moving > 0
            total = (torch.empty_like if written else torch.zeros_like)(tensor, dtype=dtype)
            if written and tensor is hidden:
                total[call.moving :].zero_()
            return total

        return cls(
            hidden=hidden.detach(),
            weight=weight_used,
            bias=finite_bias(bias, dtype),
            call=call,
            dtype=dtype,
            logits=buffer(chunk),
            kernels=kernels,
            block_size=block if kernels is None else chunk,
            scratch=buffer(block) if kernels is None else None,
            reference_logits=buffer(chunk) if has_base else None,
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

    def fold(self, span: slice) -> list[Any]:
        """Compute a chunk's logits and statistics; returns its blocks (`Block`, `KernelBlock`)."""
        call = self.call
        logits = self.logits[: span.stop - span.start]
        write_logits(self.hidden[span].to(call.compute_dtype), self.weight, self.bias, out=logits)
        reference_logits = None
        if isinstance(call.reference, ReferenceHead):
            assert self.reference_logits is not None
            reference_logits = self.reference_logits[: len(logits)]
            write_logits(
                call.reference.hidden[span],
                call.reference.weight,
                call.reference.bias,
                out=reference_logits,
            )
        if self.kernels is None:
            call.transform.apply_(logits)
            if reference_logits is not None:
                call.transform.apply_(reference_logits)
        blocks = []
        for rows in self._block_rows(span):
            at = slice(span.start + rows.start, span.start + rows.stop)
            of_rows = (
                logits[rows],
                call.labels[at],
                None if reference_logits is None else reference_logits[rows],
                call.reference.rows(at) if isinstance(call.reference, ReferenceTopK) else None,
            )
            block: Any
            if self.kernels is not None:
                block = self.kernels.block(*of_rows)
            else:
                assert self.scratch is not None
                scratch = self.scratch[: rows.stop - rows.start]
                block = Block.of(*of_rows, scratch=scratch, likeliest=call.request.likeliest)
            for name, option in call.request.options.items():
                self.values[name][at] = STATISTICS[name].fold(block, option)
            blocks.append(block)
        return blocks

    def fold_and_weigh(self, group: Group) -> list[Any]:
        """The same of a group's chunks, of the last one its blocks; and its sequences' weights."""
        blocks: list[Any] = []
        for span in group.spans:
            blocks = self.fold(span)
        if group.sequences is not None:
            assert self.call.weigher is not None and self.call.advantages is not None
            tokens = group.tokens
            values = {name: of_all[tokens] for name, of_all in self.values.items()}
            self.call.advantages[tokens] = self.call.weigher.of(values, group.sequences)
        return blocks

    def add_gradients(self, span: slice, blocks: list[Any], upstream: dict[str, Tensor]) -> None:
        """Turn a chunk's logits into dL/dz and add its share of the three gradients.

        Args:
            span: the chunk.
            blocks: what `fold` returned for it, just before.
            upstream: dL/dstatistic of its tokens, by name.

        """
        call, gradient = self.call, self.logits[: span.stop - span.start]
        for block, rows in zip(blocks, self._block_rows(span), strict=True):
            terms = block.gradient()
            for name, by_statistic in upstream.items():
                add_gradient = STATISTICS[name].add_gradient
                assert add_gradient is not None
                value, option = self.values[name][span][rows], call.request.options[name]
                add_gradient(terms, value, by_statistic[rows], option)
            written = terms.write_(call.transform)
            if self.kernels is not None:  # one block, and in the dtype of the products
                gradient = written
        if self.grad_bias is not None:
            self.grad_bias += gradient.sum(0, dtype=self.dtype)
        add_products(
            gradient,
            self.weight,
            self.hidden[span].to(call.compute_dtype),
            grad_hidden=None if self.grad_hidden is None else self.grad_hidden[span],
            grad_weight=self.grad_weight,
            first=span.start == 0,
        )

    def statistics(self) -> tuple[Tensor, ...]:
        """The statistics of all tokens in the order of the request; refuses NaN and +inf."""
        # Once for all chunks: on a GPU each look waits for the device.
        if not bool(torch.isfinite(self.values["log_prob"] + self.values["entropy"]).all()):
            raise ValueError(nonfinite_message("the logits of this head"))
        return tuple(self.values.values())

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias in their dtypes; the buffers are gone then."""
        # Casts make copies: at 151,936 x 2048 in 16 bit 1.2 GB stand beside 622 MB of the result.
        del self.logits, self.scratch, self.reference_logits
        sums = (self.grad_hidden, self.grad_weight, self.grad_bias)
        return tuple(
            None if g is None or dtype is None else g.to(dtype)
            for g, dtype in zip(sums, self.out_dtypes, strict=True)
        )

    def _block_rows(self, span: slice) -> Iterator[slice]:
        """Rows of a chunk that fit the cache together."""
        count, size = span.stop - span.start, self.block_size
        for first in range(0, count, size):
            yield slice(first, min(first + size, count))
