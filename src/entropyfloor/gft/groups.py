"""Groups of responses: their advantages and what is counted of them. No trainer, no model.

A of a response   (R - mean R) / (std R + eps) over its group; the loss is -w_source A C log p
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.responses import Response
from entropyfloor_losses import group_advantages


@dataclass
class Group:
    """The responses to one prompt.

    Attributes:
        row: number of the dataset's row.
        responses: of all sources.

    """

    row: int
    responses: list[Response] = field(default_factory=list)

    @property
    def rewards(self) -> list[float]:
        """Rewards of the responses that have one."""
        return [r.reward for r in self.responses if not np.isnan(r.reward)]


def set_advantages(
    groups: Sequence[Group], args: GFTConfig, *, batch_deviation: float | None = None
) -> None:
    """Set ``advantage`` and ``taken`` of every response; advantages without the source's weight.

    Args:
        groups: of one process; a group is whole.
        args: scaling, ablation, groups of one.
        batch_deviation: standard deviation of all rewards of the step, for
            ``scale_rewards="batch"``.

    Raises:
        ValueError: an unscored response or a group of one where the settings ask for an error.

    """
    for group in groups:
        for response in group.responses:
            response.taken = not np.isnan(response.reward)
            if not response.taken and args.on_unscored == "error":
                raise ValueError(
                    f"row {group.row}: no reward function scored a {response.source} response "
                    "(all returned None or NaN). on_unscored='leave_out' leaves such responses out"
                )
            if np.isinf(response.reward):
                raise ValueError(
                    f"row {group.row}: the reward of a {response.source} response is "
                    f"{response.reward}; rewards must be finite"
                )
    members = [(g, r) for g, group in enumerate(groups) for r in group.responses if r.taken]
    if not args.advantages:
        for _, response in members:
            response.advantage = 1.0
        return
    found = group_advantages(
        torch.tensor([r.reward for _, r in members], dtype=torch.float64),
        torch.tensor([g for g, _ in members], dtype=torch.long),
        scale=args.scale_rewards == "group",
        ddof=args.advantage_ddof,
    )
    scale = 1.0
    if args.scale_rewards == "batch":
        assert batch_deviation is not None
        scale = 1.0 / (batch_deviation + 1e-4)
    for (_, response), advantage in zip(members, found.advantages.tolist(), strict=True):
        response.advantage = advantage * scale
    for group in groups:
        taken = [response for response in group.responses if response.taken]
        if len(taken) == 1:
            _lone(taken[0], group.row, args.group_of_one)


def _lone(response: Response, row: int, group_of_one: str) -> None:
    if group_of_one == "error":
        raise ValueError(
            f"row {row}: one response only has a reward, so there is nothing to compare it with. "
            "Choose group_of_one='imitate' or 'skip'"
        )
    if group_of_one == "imitate" and response.source != "self":
        response.advantage = 1.0
    else:
        response.taken = False


def group_counts(groups: Sequence[Group], success_threshold: float) -> dict[str, float]:
    """Sums over groups and responses, by the names of `gft_metrics`."""
    counts: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        counts[name] = counts.get(name, 0.0) + value

    for group in groups:
        rewards = group.rewards
        agree = bool(rewards) and max(rewards) == min(rewards)
        passed = sum(reward >= success_threshold for reward in rewards)
        add("groups", 1)
        add("size", len(group.responses))
        add("of_one", len(rewards) == 1)
        add("degenerate", agree)
        add("all_right", agree and passed == len(rewards))
        add("all_wrong", agree and passed == 0)
        for response in group.responses:
            unscored = bool(np.isnan(response.reward))
            add("unscored", unscored)
            if not unscored:
                add(f"{response.source}/responses", 1)
                add(f"{response.source}/reward", response.reward)
                add(f"{response.source}/advantage", response.advantage if response.taken else 0.0)
    return counts
