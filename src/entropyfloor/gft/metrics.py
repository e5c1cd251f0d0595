"""Sums that group fine-tuning logs, over accumulation steps and processes, and their ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from entropyfloor.gft.groups import Group
from entropyfloor.gft.responses import SOURCES
from entropyfloor.models.loss_head import LossHeadOutput
from entropyfloor.models.ranks import wide_dtype

_SHARES = ("of_one", "degenerate", "all_right", "all_wrong", "outcome_degenerate")

GROUP_SUMS = (
    *("groups", "size", "unscored", *_SHARES),
    "loss_tokens",  # that the loss counts
    "dataset_tokens",  # of the data set's responses in the loss, prompts included
    *(f"{source}/{name}" for source in SOURCES for name in ("responses", "reward", "advantage")),
)
TOKEN_SUMS = tuple(
    f"{source}/{name}" for name in ("tokens", "rectified", "entropy", "nll") for source in SOURCES
)


def group_sums(groups: Sequence[Group], success_threshold: float) -> Tensor:
    """`GROUP_SUMS` of one process's groups with their advantages, fp64, to be added up."""
    sums = dict.fromkeys(GROUP_SUMS, 0.0)
    for group in groups:
        rewards = group.rewards
        agree = bool(rewards) and max(rewards) == min(rewards)
        passed = sum(reward >= success_threshold for reward in rewards)
        sums["groups"] += 1
        sums["size"] += len(group.responses)
        sums["unscored"] += len(group.responses) - len(rewards)
        sums["of_one"] += len(rewards) == 1
        sums["degenerate"] += agree
        sums["all_right"] += agree and passed == len(rewards)
        sums["all_wrong"] += agree and passed == 0
        sums["outcome_degenerate"] += not agree and passed in (0, len(rewards)) and bool(rewards)
        for response in group.responses:
            sums["loss_tokens"] += response.num_scored
            if response.in_loss and response.source != "self":
                sums["dataset_tokens"] += len(response.prompt_ids) + len(response.ids)
            if response.reward is not None:
                sums[f"{response.source}/responses"] += 1
                sums[f"{response.source}/reward"] += response.reward
                sums[f"{response.source}/advantage"] += response.advantage * response.in_loss
    return torch.tensor(list(sums.values()), dtype=torch.float64)


def token_sums(output: LossHeadOutput, sources: Tensor, tau: float) -> Tensor:
    """`TOKEN_SUMS` of one forward pass, fp64 (fp32 on MPS).

    Args:
        output: of the loss head.
        sources: ``[n]``, index in `SOURCES`.
        tau: of the loss: tokens with p_y below it are rectified.

    """
    mask = output.scored
    # Not output.selected: with an entropy term that is every scored token.
    rectified = mask & (output.log_prob.exp() < tau)
    wide = wide_dtype(mask.device)
    parts = []
    for values in (mask, rectified, output.entropy, -output.log_prob):
        by_row = values.detach().to(wide).sum(-1)
        parts.append(by_row.new_zeros(len(SOURCES)).index_add(0, sources, by_row))
    return torch.cat(parts)


def entropy_and_tokens(sums: Mapping[str, float]) -> tuple[float, float]:
    """Sum of entropy (nats) and number of tokens over all sources."""
    entropy, tokens = (
        sum(sums[f"{source}/{name}"] for source in SOURCES) for name in ("entropy", "tokens")
    )
    return entropy, tokens


def ratios(sums: Mapping[str, float]) -> dict[str, float]:
    """What is logged: nothing that would divide by zero.

    Args:
        sums: `GROUP_SUMS` and `TOKEN_SUMS` over ``sums["steps"]`` >= 1 optimizer steps.

    """
    logs: dict[str, float] = {}
    if groups := sums.get("groups"):
        logs |= {f"groups/{name}": sums[name] / groups for name in ("size", *_SHARES)}
        logs["responses/unscored"] = sums["unscored"] / sums["size"]
    for source in SOURCES:
        if responses := sums.get(f"{source}/responses"):
            for name in ("reward", "advantage"):
                logs[f"{source}/{name}"] = sums[f"{source}/{name}"] / responses
        if tokens := sums.get(f"{source}/tokens"):
            logs[f"{source}/tokens"] = tokens / sums["steps"]
            for name in ("rectified", "entropy", "nll"):
                logs[f"{source}/{name}"] = sums[f"{source}/{name}"] / tokens
    return logs
