"""Groups of responses: joined, given their advantages, made tensors. No trainer, no model.

A of a response   (R - mean R) / (std R + eps) over its group; the loss is -w_source A C log p

What needs other processes is passed as ``add_up``, a sum over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.responses import SOURCES, Response, row_responses
from entropyfloor.gft.rows import REWARDS_COLUMN, draw, encode_completions
from entropyfloor.rollouts.prompts import ROW_COLUMN
from entropyfloor_losses import IGNORE_INDEX, group_advantages

AddUp = Callable[[Tensor], Tensor]  # fp64 vector -> its sum over processes


@dataclass
class Group:
    """The responses to one prompt."""

    row: int  # number of the dataset's row
    responses: list[Response]  # of all sources

    @property
    def rewards(self) -> list[float]:
        """Rewards of the responses that have one."""
        return [r.reward for r in self.responses if r.reward is not None]


def dataset_group(
    row: Mapping[str, Any],
    prompt_ids: Sequence[int],
    tokenizer: Any,
    limits: Mapping[str, int],
    *,
    seed: int,
    step: int,
) -> Group:
    """The responses of one row of the data set that take part in a step.

    Raises:
        ValueError: a prompt of no tokens.

    """
    number = row[ROW_COLUMN]
    if not prompt_ids:
        raise ValueError(f"row {number}: the tokenizer turns the prompt into no tokens")
    responses, rewards = row_responses(row, f"row {number}"), row[REWARDS_COLUMN]
    drawn = []
    for place in draw(responses, limits, seed=seed, step=step, row=number):
        response = responses[place]
        response.reward = _known(rewards[place])
        response.prompt_ids = prompt_ids
        (response.ids,) = encode_completions([row], [prompt_ids], [response.completion], tokenizer)
        drawn.append(response)
    return Group(number, drawn)


def policy_samples(
    batch: Mapping[str, Tensor], rewards: Sequence[float], count: int
) -> list[list[Response]]:
    """The policy's samples by prompt.

    Args:
        batch: of trl's ``_generate_and_score_completions``, ``count`` rows per prompt.
        rewards: of each row; NaN where no reward function applied.
        count: samples per prompt.

    """
    prompts = _unpad(batch["prompt_ids"], batch["prompt_mask"])
    completions = _unpad(batch["completion_ids"], batch["completion_mask"])
    masks: list[list[bool] | None] = [None] * len(rewards)
    if "tool_mask" in batch:  # a rollout function's env_mask: tokens the model did not write
        kept = _unpad(batch["tool_mask"], batch["completion_mask"])
        masks = [[bool(value) for value in mask] for mask in kept]
    samples = [
        Response("self", None, _known(reward), prompt_ids, ids, scored)
        for prompt_ids, ids, reward, scored in zip(
            prompts, completions, rewards, masks, strict=True
        )
    ]
    return [samples[start : start + count] for start in range(0, len(samples), count)]


def set_advantages(groups: Sequence[Group], args: GFTConfig, *, add_up: AddUp) -> None:
    """Set ``advantage`` and ``in_loss`` of every response; advantages without the source's weight.

    Args:
        groups: of one process; a group is whole.
        args: scaling, ablation, groups of one.
        add_up: over processes; called equally often on each.

    Raises:
        ValueError: an unscored response or a group of one where the settings ask for an error.

    """
    scale = 1.0
    if args.scale_rewards == "batch":
        scale = 1.0 / (_deviation(groups, args.advantage_ddof, add_up) + 1e-4)
    for group in groups:
        for response in group.responses:
            response.in_loss = response.reward is not None
            if response.reward is None and args.on_unscored == "error":
                raise ValueError(
                    f"row {group.row}: no reward function scored a {response.source} response "
                    "(all returned None or NaN). on_unscored='leave_out' leaves such responses out"
                )
            if response.reward is not None and math.isinf(response.reward):
                raise ValueError(
                    f"row {group.row}: the reward of a {response.source} response is "
                    f"{response.reward}; rewards must be finite"
                )
    members = [(g, r) for g, group in enumerate(groups) for r in group.responses if r.in_loss]
    if not args.advantages:
        for _, response in members:
            response.advantage = 1.0
        return
    advantages = group_advantages(
        torch.tensor([r.reward for _, r in members], dtype=torch.float64),
        torch.tensor([g for g, _ in members], dtype=torch.long),
        scale=args.scale_rewards == "group",
        ddof=args.advantage_ddof,
    ).advantages
    for (_, response), advantage in zip(members, advantages.tolist(), strict=True):
        response.advantage = advantage * scale
    for group in groups:
        scored = [response for response in group.responses if response.in_loss]
        if len(scored) == 1:
            _set_alone(scored[0], group.row, args.group_of_one)


def _set_alone(response: Response, row: int, group_of_one: str) -> None:
    if group_of_one == "error":
        raise ValueError(
            f"row {row}: one response only has a reward, so there is nothing to compare it with. "
            "Choose group_of_one='imitate' or 'skip'"
        )
    if group_of_one == "imitate" and response.source != "self":
        response.advantage = 1.0
    else:
        response.in_loss = False


def _deviation(groups: Sequence[Group], ddof: int, add_up: AddUp) -> float:
    """Standard deviation of all rewards of the step."""
    values = torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float64)
    local = torch.tensor([float(len(values)), float(values.sum())], dtype=torch.float64)
    number, total = add_up(local).tolist()
    squares = (values - total / max(number, 1.0)).square().sum().reshape(1)
    return math.sqrt(float(add_up(squares)) / max(number - ddof, 1.0))


def collate(
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    weights: Mapping[str, float],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Tensors of one forward pass over the responses that are in the loss.

    Args:
        groups: at least one response.
        pad_token_id: fills up.
        weights: factor on advantages, by source.
        dtype: of the advantages.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` (-100 where not scored) ``[n, length]`` int64,
        ``advantages`` ``[n, length]``, weighted, ``completion_mask`` ``[n, length]`` bool, scored
        tokens of policy samples as in trl, and ``sources`` ``[n]``, index in `SOURCES`.
        Right-padded. With nothing to train on, one row without labels: every process must run its
        forward pass.

    """
    responses = [response for group in groups for response in group.responses]
    in_loss = [response for response in responses if response.in_loss and len(response.ids)]
    if not in_loss:
        prompt_ids = responses[0].prompt_ids
        in_loss = [Response("self", None, None, prompt_ids, [pad_token_id], scored=[False])]
    length = max(len(r.prompt_ids) + len(r.ids) for r in in_loss)
    shape = (len(in_loss), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    advantages = torch.zeros(shape, dtype=dtype)
    for number, response in enumerate(in_loss):
        start, end = len(response.prompt_ids), len(response.prompt_ids) + len(response.ids)
        ids = torch.tensor(response.ids, dtype=torch.long)
        input_ids[number, :start] = torch.tensor(response.prompt_ids, dtype=torch.long)
        input_ids[number, start:end] = ids
        attention_mask[number, :end] = 1
        if response.scored is not None:
            ids = ids.masked_fill(~torch.tensor(response.scored, dtype=torch.bool), IGNORE_INDEX)
        labels[number, start:end] = ids
        advantages[number, start:end] = response.advantage * weights[response.source]
    of_policy = torch.tensor([response.source == "self" for response in in_loss])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "advantages": advantages,
        "completion_mask": (labels != IGNORE_INDEX) & of_policy[:, None],
        "sources": torch.tensor([SOURCES.index(response.source) for response in in_loss]),
    }


def _known(reward: float) -> float | None:
    return None if math.isnan(reward) else reward


def _unpad(values: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of ``values`` where ``mask`` is set, as lists."""
    pairs = zip(values.cpu(), mask.bool().cpu(), strict=True)
    return [row[kept].tolist() for row, kept in pairs]
