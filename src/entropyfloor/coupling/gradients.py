"""Gradients of the SFT loss and of the reward at a checkpoint, block by block, in bounded memory.

    SFT   grad of  -log p(y_t), mean over the tokens of the demonstrations
    RL    grad of  -J, by  A_i grad -log p(y_i)  over rollouts y_i at temperature 1

    A_i = r_i - mean of the other rewards of its group        (leave-one-out)

With that advantage, no division by its spread and no division by length, the RL gradient is an
unbiased estimate of minus the gradient of the mean reward, so that inner products and norms mean
what the theory says. GRPO's division by the group's spread reweights prompts on top of it.

Rows and chunks. Rows of bounded size go through the backbone, chunks of their hidden states through
the head, recomputed in the backward pass. As soon as a parameter's gradient is there, a hook adds
it to an fp32 sum in host memory and frees it: the device never holds more than the gradients that
one backward pass has under way, and bf16 models do not lose small gradients in sums.

Parameters. The sums of all blocks are needed at once to compare them. Layers are taken together as
far as ``memory_bytes`` allows, and everything runs once per set of layers: more memory is fewer
passes, and the numbers are the same. Of an adapter only its own weights are looked at.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import (
    Completion,
    chunk_tokens,
    completion_hidden,
    head_logits,
    row_batches,
)
from entropyfloor_losses import token_statistics

BLOCKS = 4  # of demonstrations and of prompts: enough for a jackknife, 8 sums per parameter
_ROW_TOKENS = 2048  # activations of one backward pass; a quarter of what a forward pass may hold
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True)
class WeightedCompletion:
    """A completion whose ``weight * sum_t -log p(y_t)`` is a part of an objective."""

    completion: Completion
    weight: float


Block = Sequence[WeightedCompletion]


def sft_blocks(
    completions: Sequence[Completion], blocks: int = BLOCKS
) -> list[list[WeightedCompletion]]:
    """Blocks whose *mean* gradient is that of the mean loss per token."""
    tokens = sum(len(completion.ids) for completion in completions)
    return [
        [WeightedCompletion(c, blocks / tokens) for c in completions[block::blocks]]
        for block in range(blocks)
    ]


def rl_blocks(
    groups: Sequence[Sequence[tuple[Rollout, float]]],
    encoded: Sequence[Sequence[int]],
    blocks: int = BLOCKS,
) -> list[list[WeightedCompletion]]:
    """Blocks whose mean gradient estimates that of minus the mean reward.

    Args:
        groups: (rollout, reward) of each prompt, two or more per prompt.
        encoded: token ids per prompt.
        blocks: how many.

    """
    rows: list[list[WeightedCompletion]] = [[] for _ in range(blocks)]
    for number, group in enumerate(groups):
        advantages = leave_one_out([reward for _, reward in group])
        for (rollout, _), advantage in zip(group, advantages, strict=True):
            if advantage:  # a group that agrees has no gradient
                index = rollout.prompt_index
                completion = Completion(index, tuple(encoded[index]), rollout.token_ids)
                weight = blocks * advantage / (len(groups) * len(group))
                rows[number % blocks].append(WeightedCompletion(completion, weight))
    return rows


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """``r_i`` minus the mean of the others.

    Raises:
        ValueError: a group of one, which has nothing to be compared with.

    """
    size = len(rewards)
    if size < 2:
        raise ValueError(
            f"the RL gradient compares the rollouts of a prompt, and there is {size}; draw two or "
            "more per prompt"
        )
    total = sum(rewards)
    return [reward - (total - reward) / (size - 1) for reward in rewards]


@dataclass(frozen=True)
class ParameterGradients:
    """One parameter's gradients."""

    name: str  # of the parameter
    layer: str  # layer 3, embeddings, or rest (final norm, head)
    sft: Tensor  # [K, ...] of the SFT blocks, fp32 (fp64 of an fp64 model), on the host
    rl: Tensor  # [K, ...] of the RL blocks

    @property
    def gram(self) -> np.ndarray:
        """``[2K, 2K]`` inner products, SFT blocks first."""
        rows = torch.cat([self.sft, self.rl]).flatten(1).double()
        return (rows @ rows.T).numpy()


def chosen_parameters(checkpoint: LoadedCheckpoint) -> tuple[str, dict[str, torch.nn.Parameter]]:
    """``("adapter", its weights)``, or ``("all", ...)``: every weight that can have a gradient."""
    named = dict(checkpoint.model.named_parameters())
    if hasattr(checkpoint.model, "peft_config"):
        active = checkpoint.model.active_adapter
        return "adapter", {n: p for n, p in named.items() if active in n.split(".")}
    return "all", {n: p for n, p in named.items() if p.is_floating_point()}


def block_gradients(
    checkpoint: LoadedCheckpoint,
    sft: Sequence[Block],
    rl: Sequence[Block],
    *,
    memory_bytes: int,
) -> Iterator[ParameterGradients]:
    """Yield every parameter's gradients, in the model's order.

    Args:
        checkpoint: in evaluation mode; its gradients and ``requires_grad`` are put back.
        sft: K blocks.
        rl: K blocks.
        memory_bytes: of host memory for sums; never less than one parameter needs.

    """
    _, parameters = chosen_parameters(checkpoint)
    for names in parameter_sets(parameters, len(sft) + len(rl), memory_bytes):
        chosen = {name: parameters[name] for name in names}
        with _only(checkpoint.model, chosen) as sums:
            for slot, block in enumerate([*sft, *rl]):
                sums.slot = slot
                _backward(checkpoint, block)
        for name, parameter in chosen.items():
            rows = sums.take(name, len(sft) + len(rl), parameter)
            layer = layer_of(checkpoint, name)
            yield ParameterGradients(name, layer, rows[: len(sft)], rows[len(sft) :])


def parameter_sets(
    parameters: dict[str, torch.nn.Parameter], copies: int, memory_bytes: int
) -> list[list[str]]:
    """Cut parameters, in order, into sets whose sums fit into ``memory_bytes``."""
    sets: list[list[str]] = []
    room = 0
    for name, parameter in parameters.items():
        needed = copies * parameter.numel() * _sum_dtype(parameter).itemsize
        if not sets or needed > room:
            sets.append([])
            room = memory_bytes
        sets[-1].append(name)
        room -= needed
    return sets


def layer_of(checkpoint: LoadedCheckpoint, name: str) -> str:
    """Which layer a parameter belongs to."""
    if match := _LAYER.search(name):
        return f"layer {match[1]}"
    inner = checkpoint.inner_model
    embeddings = {id(p) for p in inner.get_input_embeddings().parameters()}
    module = checkpoint.model.get_parameter(name)
    return "embeddings" if id(module) in embeddings else "rest"


class _Sums:
    """fp32 sums in host memory, by parameter and block."""

    def __init__(self) -> None:
        self.slot = 0
        self._sums: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        share = parameter.grad.to("cpu", _sum_dtype(parameter))
        total = self._sums.setdefault((name, self.slot), share)
        if total is not share:
            total += share
        parameter.grad = None

    def take(self, name: str, slots: int, parameter: torch.nn.Parameter) -> Tensor:
        """``[slots, ...]``; blocks without a gradient are zero."""
        empty = torch.zeros(parameter.shape, dtype=_sum_dtype(parameter))
        return torch.stack([self._sums.pop((name, slot), empty) for slot in range(slots)])


@contextmanager
def _only(model: Any, chosen: dict[str, torch.nn.Parameter]) -> Iterator[_Sums]:
    """Let the chosen parameters alone have gradients, which go to the sums as they come."""
    sums = _Sums()
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    handles = []
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, parameter in chosen.items():
            parameter.requires_grad_(True)

            add = partial(sums.add, name)
            handles.append(parameter.register_post_accumulate_grad_hook(add))
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _backward(checkpoint: LoadedCheckpoint, block: Block) -> None:
    chunk = chunk_tokens(checkpoint)
    for batch in row_batches([row.completion for row in block], _ROW_TOKENS):
        rows = [block[index] for index in batch]
        with torch.enable_grad():
            hidden = completion_hidden(checkpoint, [row.completion for row in rows])
            labels = torch.tensor([token for row in rows for token in row.completion.ids])
            weights = torch.tensor(
                [row.weight for row in rows for _ in row.completion.ids], dtype=torch.float64
            )
            loss = hidden.new_zeros((), dtype=torch.float32)
            for start in range(0, len(labels), chunk):
                span = slice(start, start + chunk)
                loss = loss + recomputed(
                    _objective,
                    checkpoint,
                    hidden[span],
                    labels[span].to(hidden.device),
                    weights[span].to(hidden.device),
                    use_reentrant=False,
                )
            loss.backward()


def _objective(
    checkpoint: LoadedCheckpoint, hidden: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    log_prob = token_statistics(head_logits(checkpoint, hidden), labels, top_k=1).log_prob
    return -(weights.to(log_prob) * log_prob).sum()


def _sum_dtype(parameter: torch.nn.Parameter) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
