"""Responses of a step: those of the dataset, those trl has sampled, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropyfloor.gft.given_responses import SOURCES
from entropyfloor.gft.rows import GIVEN_REWARDS, draw, encode_given
from entropyfloor.rollouts.prompts import ROW_COLUMN
from entropyfloor_losses import IGNORE_INDEX


@dataclass
class Response:
    """One response of a group.

    Attributes:
        source: one of `SOURCES`.
        prompt_ids: tokens it follows.
        ids: its tokens.
        reward: NaN where no reward function applied.
        scored: per token, whether the loss counts it; None: all of them.
        advantage: without the source's weight; set by `set_advantages`.
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


def given_responses(
    row: Mapping[str, Any],
    prompt_ids: Sequence[int],
    tokenizer: Any,
    counts: Mapping[str, int],
    *,
    seed: int,
    step: int,
) -> list[Response]:
    """The given responses of one row that take part in a step.

    Raises:
        ValueError: a prompt of no tokens.

    """
    if not prompt_ids:
        raise ValueError(f"row {row[ROW_COLUMN]}: the tokenizer turns the prompt into no tokens")
    drawn = draw(row, counts, seed=seed, step=step)
    given = [row["responses"][number] for number in drawn]
    ids = encode_given(
        [row] * len(given),
        [prompt_ids] * len(given),
        [response["completion"] for response in given],
        tokenizer,
    )
    return [
        Response(response["source"], prompt_ids, own, row[GIVEN_REWARDS][number])
        for response, own, number in zip(given, ids, drawn, strict=True)
    ]


def own_responses(
    batch: Mapping[str, Tensor], rewards: Sequence[float], count: int
) -> list[list[Response]]:
    """Own samples by prompt.

    Args:
        batch: of trl's ``_generate_and_score_completions``, ``count`` rows per prompt.
        rewards: of each row.
        count: samples per prompt.

    """
    prompts = _unpad(batch["prompt_ids"], batch["prompt_mask"])
    completions = _unpad(batch["completion_ids"], batch["completion_mask"])
    masks: list[list[bool] | None] = [None] * len(rewards)
    if "tool_mask" in batch:  # a rollout function's env_mask: tokens the model did not write
        kept = _unpad(batch["tool_mask"], batch["completion_mask"])
        masks = [[bool(value) for value in mask] for mask in kept]
    found = [
        Response("self", *fields)
        for fields in zip(prompts, completions, rewards, masks, strict=True)
    ]
    return [found[start : start + count] for start in range(0, len(found), count)]


def collate(
    responses: Sequence[Response],
    *,
    pad_token_id: int,
    weights: Mapping[str, float],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Tensors of one forward pass over the responses that are taken.

    Args:
        responses: of whole groups, at least one.
        pad_token_id: fills up.
        weights: factor on advantages, by source.
        dtype: of the advantages.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` (-100 where not scored) ``[n, length]`` int64,
        ``advantages`` ``[n, length]``, weighted, ``completion_mask`` ``[n, length]`` bool, scored
        tokens of own samples as in trl, and ``sources`` ``[n]``, index in `SOURCES`. Right-padded.
        With nothing to train on, one row without labels: every process must run its forward pass.

    """
    taken = [response for response in responses if response.taken and len(response.ids)]
    if not taken:
        nothing = Response("self", responses[0].prompt_ids, [pad_token_id], 0.0, scored=[False])
        taken = [nothing]
    length = max(len(r.prompt_ids) + len(r.ids) for r in taken)
    shape = (len(taken), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    advantages = torch.zeros(shape, dtype=dtype)
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
    own = torch.tensor([response.source == "self" for response in taken])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "advantages": advantages,
        "completion_mask": (labels != IGNORE_INDEX) & own[:, None],
        "sources": torch.tensor([SOURCES.index(response.source) for response in taken]),
    }


def _unpad(values: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of ``values`` where ``mask`` is set, as lists."""
    pairs = zip(values.cpu(), mask.bool().cpu(), strict=True)
    return [row[kept].tolist() for row, kept in pairs]
