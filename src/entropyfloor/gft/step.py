"""One optimizer step of group fine-tuning, on one process: rows and own samples to tensors.

What needs other processes is given as ``add_up``, a sum over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.groups import Group, group_counts, set_advantages
from entropyfloor.gft.metrics import GROUP_SUMS, group_vector
from entropyfloor.gft.responses import Response, collate, given_responses
from entropyfloor.rollouts.prompts import ROW_COLUMN

AddUp = Callable[[Tensor], Tensor]  # fp64 vector -> its sum over processes


@dataclass
class Step:
    """Groups of one step with their advantages, and sums over all processes.

    Attributes:
        groups: of this process, in the order of its rows.
        counts: `GROUP_SUMS`.
        num_items: tokens that the loss counts.
        given_tokens: tokens of given responses that are trained on, prompts included.

    """

    groups: list[Group]
    counts: dict[str, float]
    num_items: float
    given_tokens: int

    def batches(
        self,
        sizes: Sequence[int],
        *,
        pad_token_id: int,
        weights: Mapping[str, float],
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        """Inputs of each micro-batch; ``sizes`` are their numbers of groups."""
        found, start = [], 0
        for size in sizes:
            part = self.groups[start : start + size]
            tensors = collate(
                [response for group in part for response in group.responses],
                pad_token_id=pad_token_id,
                weights=weights,
                dtype=dtype,
            )
            on_device = {name: value.to(device) for name, value in tensors.items()}
            found.append(on_device | {"num_items": self.num_items})
            start += size
        return found

    @property
    def own_advantages(self) -> list[float]:
        """Advantages of own samples, in the order they were drawn in."""
        return [r.advantage for group in self.groups for r in group.responses if r.source == "self"]


def make_step(
    rows: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[Sequence[int]],
    own: Sequence[list[Response]],
    args: GFTConfig,
    *,
    tokenizer: Any,
    step: int,
    add_up: AddUp,
) -> Step:
    """Join given responses and own samples to groups, and set their advantages.

    Args:
        rows: of this process; each is a group.
        prompt_ids: tokens of their prompts.
        own: own samples by row.
        args: of the run.
        tokenizer: of the model.
        step: optimizer steps done; which given responses are drawn follows from it.
        add_up: over processes; called equally often on each.

    """
    groups = []
    for row, prefix, samples in zip(rows, prompt_ids, own, strict=True):
        given = given_responses(
            row, prefix, tokenizer, args.response_counts(), seed=args.seed, step=step
        )
        groups.append(Group(row[ROW_COLUMN], given + samples))
    deviation = None
    if args.scale_rewards == "batch":
        deviation = _deviation(groups, args.advantage_ddof, add_up)
    set_advantages(groups, args, batch_deviation=deviation)
    taken = [r for group in groups for r in group.responses if r.taken]
    tokens = [
        float(sum(r.num_scored for r in taken)),
        float(sum(len(r.prompt_ids) + len(r.ids) for r in taken if r.source != "self")),
    ]
    counts = group_vector(group_counts(groups, args.success_threshold))
    sums = add_up(torch.cat([counts, torch.tensor(tokens, dtype=torch.float64)])).tolist()
    return Step(
        groups=groups,
        counts=dict(zip(GROUP_SUMS, sums[:-2], strict=True)),
        num_items=sums[-2],
        given_tokens=int(sums[-1]),
    )


def _deviation(groups: Sequence[Group], ddof: int, add_up: AddUp) -> float:
    """Standard deviation of all rewards of the step."""
    values = torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float64)
    local = torch.tensor([float(len(values)), float(values.sum())], dtype=torch.float64)
    number, total = add_up(local).tolist()
    squares = (values - total / max(number, 1.0)).square().sum().reshape(1)
    return math.sqrt(float(add_up(squares)) / max(number - ddof, 1.0))
