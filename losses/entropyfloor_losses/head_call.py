"""A call of the fused head: checked, its ignored tokens taken out, its chunk chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base_anchor import BaseHead, BaseTopK, check_base_shapes, scored_base
from .logit_blocks import LogitTransform
from .statistics import (
    IGNORE_INDEX,
    StatisticsRequest,
    TokenStatistics,
    check_advantages,
    check_base,
    check_head_options,
    check_labels,
    check_top_k,
    statistics_dtype,
)

# Logits of one chunk, in bytes. At (1024, 896, 151,936) in fp32 on two cores, two chunks of 512
# tokens (297 MiB) took 1.05x the three bare products, three chunks 1.09x and five 1.29x: the
# weight's gradient, 545 MB, is read and written once per chunk. `make bench` shows it.
_CHUNK_BYTES = {"cpu": 320 * 2**20, "default": 512 * 2**20}

STATISTIC_NAMES = (
    "log_prob",
    "entropy",
    "top_k_mass",
    "is_top1",
    "mean_log_prob",
    "tempered_log_prob",
    "support_entropy",
    "base_kl",
)


@dataclass(frozen=True)
class HeadCall:
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
    ) -> HeadCall:
        """Check everything; `linear_loss` documents the arguments and what is refused."""
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

        names = STATISTIC_NAMES
        spread_out = {name: spread(values) for name, values in zip(names, flat, strict=True)}
        spread_out["advantage"] = spread(self.advantages)
        return TokenStatistics(scored=self.scored, **spread_out)  # type: ignore[arg-type]


def _even_chunk(tokens: int, vocabulary: int, device_type: str, dtype: torch.dtype) -> int:
    """Tokens per chunk: the fewest chunks that fit the budget, all of about the same size."""
    budget = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["default"])
    most = max(1, budget // (vocabulary * statistics_dtype(dtype).itemsize))
    return max(1, math.ceil(tokens / math.ceil(max(tokens, 1) / most)))
