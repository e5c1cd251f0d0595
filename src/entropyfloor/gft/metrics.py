"""Sums that group fine-tuning logs, over accumulation steps and processes, and their ratios."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from entropyfloor.gft.given_responses import SOURCES
from entropyfloor.models.loss_head import LossHeadOutput
from entropyfloor_losses import IGNORE_INDEX

_GROUPS = ("groups", "size", "of_one", "degenerate", "all_right", "all_wrong", "unscored")
_RESPONSES = ("responses", "reward", "advantage")
_TOKENS = ("tokens", "rectified", "entropy", "nll")

GROUP_SUMS = (*_GROUPS, *(f"{source}/{name}" for source in SOURCES for name in _RESPONSES))
TOKEN_SUMS = (
    *(f"{source}/{name}" for name in _TOKENS for source in SOURCES),
    "base_kl",
)


def group_vector(counts: Mapping[str, float]) -> Tensor:
    """`GROUP_SUMS` as one fp64 vector, to be added over processes."""
    return torch.tensor([float(counts.get(name, 0.0)) for name in GROUP_SUMS], dtype=torch.float64)


def token_vector(output: LossHeadOutput, sources: Tensor, labels: Tensor, tau: float) -> Tensor:
    """`TOKEN_SUMS` of one forward pass, fp64 (fp32 on MPS).

    Args:
        output: of the loss head.
        sources: ``[n]``, index in `SOURCES`.
        labels: ``[n, length]``, not shifted.
        tau: of the loss: tokens with p_y below it are rectified.

    """
    assert output.entropy is not None and output.token_log_probs is not None
    mask = labels[:, 1:] != IGNORE_INDEX
    # Not output.selected: with an entropy term that is every scored token.
    rectified = mask & (output.token_log_probs.exp() < tau)
    # Sums over long runs between two logs need fp64, which MPS does not have.
    wide = torch.float32 if mask.device.type == "mps" else torch.float64
    parts = []
    for values in (mask, rectified, output.entropy, -output.token_log_probs):
        by_row = values.detach().to(wide).sum(-1)
        parts.append(by_row.new_zeros(len(SOURCES)).index_add(0, sources, by_row))
    extra = output.base_kl
    found = mask.new_zeros((), dtype=wide) if extra is None else extra.detach().to(wide).sum()
    parts.append(found.reshape(1))
    return torch.cat(parts)


def entropy_and_tokens(sums: Mapping[str, float]) -> tuple[float, float]:
    """Sum of entropy (nats) and number of tokens over all sources."""
    entropy, tokens = (
        sum(sums[f"{source}/{name}"] for source in SOURCES) for name in ("entropy", "tokens")
    )
    return entropy, tokens


def floor_ratios(sums: Mapping[str, float]) -> dict[str, float]:
    """What is logged of the entropy term: as `SEDTrainer` does."""
    tokens = entropy_and_tokens(sums)[1]
    if not tokens:
        return {}
    return {
        "base_kl": sums["base_kl"] / tokens,
    }


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
