"""Sums that group fine-tuning logs, over accumulation steps and processes, and their ratios."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .gft_config import SOURCES

_GROUPS = ("groups", "size", "of_one", "degenerate", "all_right", "all_wrong", "unscored")
_RESPONSES = ("responses", "reward", "advantage")
_TOKENS = ("tokens", "rectified", "entropy", "nll")

GROUP_SUMS = (*_GROUPS, *(f"{source}/{name}" for source in SOURCES for name in _RESPONSES))
TOKEN_SUMS = tuple(f"{source}/{name}" for name in _TOKENS for source in SOURCES)


def group_vector(counts: Mapping[str, float]) -> Tensor:
    """`GROUP_SUMS` as one fp64 vector, to be added over processes."""
    return torch.tensor([float(counts.get(name, 0.0)) for name in GROUP_SUMS], dtype=torch.float64)


def token_vector(
    sources: Tensor, mask: Tensor, selected: Tensor, entropy: Tensor, log_prob: Tensor
) -> Tensor:
    """`TOKEN_SUMS` of one forward pass, fp64 (fp32 on MPS).

    Args:
        sources: ``[n]``, index in `SOURCES`.
        mask: ``[n, length]``, scored tokens.
        selected: ``[n, length]``, rectified tokens.
        entropy: ``[n, length]`` nats, 0 where not scored.
        log_prob: ``[n, length]`` nats, 0 where not scored.

    """
    # Sums over long runs between two logs need fp64, which MPS does not have.
    wide = torch.float32 if mask.device.type == "mps" else torch.float64
    parts = []
    for values in (mask, selected & mask, entropy, -log_prob):
        by_row = values.detach().to(wide).sum(-1)
        parts.append(by_row.new_zeros(len(SOURCES)).index_add(0, sources, by_row))
    return torch.cat(parts)


def ratios(sums: Mapping[str, float], steps: int) -> dict[str, float]:
    """What is logged: nothing that would divide by zero.

    Args:
        sums: `GROUP_SUMS` and `TOKEN_SUMS` over ``steps`` optimizer steps.
        steps: >= 1.

    """
    found: dict[str, float] = {}
    if sums.get("groups"):
        groups = sums["groups"]
        for name in ("size", "of_one", "degenerate", "all_right", "all_wrong"):
            found[f"groups/{name}"] = sums[name] / groups
        found["responses/unscored"] = sums["unscored"] / sums["size"]
    for source in SOURCES:
        if responses := sums.get(f"{source}/responses"):
            found[f"{source}/reward"] = sums[f"{source}/reward"] / responses
            found[f"{source}/advantage"] = sums[f"{source}/advantage"] / responses
        if tokens := sums.get(f"{source}/tokens"):
            found[f"{source}/tokens"] = tokens / steps
            for name in ("rectified", "entropy", "nll"):
                found[f"{source}/{name}"] = sums[f"{source}/{name}"] / tokens
    return found
