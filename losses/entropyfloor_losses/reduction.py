"""Reduction by a global token count.

A batch may be cut into micro-batches and spread over ranks with unequal numbers of scored tokens.
A mean of means then weights tokens unequally; a sum over the count of the *whole* batch does not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_mean(total: Tensor, num_items: int | Tensor) -> Tensor:
    """``total / max(num_items, 1)``: no scored token anywhere gives 0 with a live graph, not NaN.

    Args:
        total: scalar, a sum over this call's scored tokens.
        num_items: scored tokens of the global batch; an int or a 0-dim tensor on any device.

    """
    if isinstance(num_items, Tensor):
        return total / num_items.to(device=total.device, dtype=total.dtype).clamp(min=1)
    return total / max(num_items, 1)


def reduce_tokens(values: Tensor, scored: Tensor, num_items: int | Tensor | None = None) -> Tensor:
    """Sum ``values`` at scored positions and divide by the global count.

    Args:
        values: ``[...]`` per-token loss values.
        scored: ``[...]`` bool, `TokenStatistics.scored`.
        num_items: scored tokens of the global batch; default: those in ``scored``.

    """
    total = torch.where(scored, values, torch.zeros_like(values)).sum()
    return token_mean(total, scored.sum() if num_items is None else num_items)
