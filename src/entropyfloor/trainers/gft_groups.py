"""Groups of responses: their coefficients, and the tensors of one forward pass. No trainer.

coefficient of a response   w_source * A,   A = group advantage of its reward
loss                        sum over its tokens of coefficient * C * -log p
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropyfloor_losses import IGNORE_INDEX, group_advantages

from .gft_config import SOURCES, GFTConfig


@dataclass
class Response:
    """One response of a group.

    Attributes:
        source: one of `SOURCES`.
        prompt_ids: tokens it follows.
        ids: its tokens.
        reward: NaN where no reward function applied.
        scored: per token, whether the loss counts it; None: all of them.
        advantage: set by `set_advantages`.
        taken: whether it takes part in the loss; set by `set_advantages`.

    """

    source: str
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    reward: float
    scored: Sequence[bool] | None = None
    advantage: float = 0.0
    taken: bool = True

    @property
    def num_scored(self) -> int:
        """Tokens that the loss counts."""
        if not self.taken:
            return 0
        return len(self.ids) if self.scored is None else sum(self.scored)


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


def collate(
    groups: Sequence[Group], *, pad_token_id: int, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Tensors of one forward pass over all responses that are taken.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` (-100 where not scored) ``[n, length]`` int64,
        ``advantages`` ``[n, length]`` fp32, weighted, and ``sources`` ``[n]``, index in `SOURCES`.
        Right-padded. With nothing to train on, one row without labels: every process must run its
        forward pass.

    """
    taken = [r for group in groups for r in group.responses if r.taken and len(r.ids)]
    if not taken:
        prompt_ids = next(r.prompt_ids for group in groups for r in group.responses)
        taken = [Response("self", prompt_ids, [pad_token_id], 0.0, scored=[False])]
    length = max(len(r.prompt_ids) + len(r.ids) for r in taken)
    shape = (len(taken), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    advantages = torch.zeros(shape, dtype=torch.float32)
    for number, response in enumerate(taken):
        start, end = len(response.prompt_ids), len(response.prompt_ids) + len(response.ids)
        ids = torch.tensor(response.ids, dtype=torch.long)
        input_ids[number, :start] = torch.tensor(response.prompt_ids, dtype=torch.long)
        input_ids[number, start:end] = ids
        attention_mask[number, :end] = 1
        if response.scored is not None:
            ids = ids.masked_fill(~torch.tensor(response.scored, dtype=torch.bool), IGNORE_INDEX)
        labels[number, start:end] = ids
        advantages[number, start:end] = response.advantage * weights[response.source]
    sources = torch.tensor([SOURCES.index(response.source) for response in taken])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "advantages": advantages,
        "sources": sources,
    }


def group_counts(groups: Sequence[Group], success_threshold: float) -> dict[str, Any]:
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
