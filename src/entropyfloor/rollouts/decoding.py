"""Draw a batch of completions: which token, how surprising, and the model's steps between.

**Tokens.** From the logits of one step, for every row:

    raw logits ─► entropy at temperature 1
               └► temperature ─► top-k ─► top-p (transformers' warpers) ─► inverse CDF ─► token

    H = log s - (sum_v e_v z_v) / s        z = logits - max,  e = exp(z),  s = sum_v e_v;  nats

``generate``'s own sampling draws from one global stream, so a token depends on which rows share
the batch. Here every rollout owns its uniforms, seeded by (seed, prompt index, sample index), one
per step; the token is the first whose cumulative probability exceeds it. The rollout is then the
same in any batch, up to the rounding of the logits themselves.

The cumulative sum is taken in two levels, over blocks of the vocabulary and inside the one that is
hit, in fp64: sums in fp32 would lose every token past the first that brings the sum within 6e-8 of
1, and one fp64 sum over a vocabulary took longer than all else here. A CPU works on a few rows at a
time, which stay in its cache.

**Steps.** Three things make `decode` faster than ``generate``, which draws the same:

- **Each prompt is read once**, however many rollouts it has, and its keys and values are copied.
- **A row leaves the batch when it has ended.** ``generate`` computes all rows until the longest
  ends. On a CPU a step's time is in proportion to its rows: with lengths spread evenly up to the
  limit this halves the work.
- **Keys and values are written into room that is there**, and are not copied for every token.

A model with a recurrent state, or with virtual tokens before the prompt, is left to ``generate``
(`reads_keys_and_values`).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.ranks import wide_dtype
from entropyfloor.rollouts.options import Sampling

_BLOCK = 256  # tokens of the vocabulary that are summed before the others are looked at
_CACHED = 2**19  # logits, 2 MiB of them, that a CPU works on at a time


def rollout_uniforms(
    seed: int, rollouts: Sequence[tuple[int, ...]], num_steps: int
) -> torch.Tensor:
    """``[len(rollouts), num_steps]`` float64 in [0, 1) on the CPU; row i is of rollouts[i] only.

    ``rollouts`` holds what makes each different: in screening (prompt index, sample index). More
    steps extend a row and do not change its beginning.
    """
    rows = [np.random.default_rng((seed, *rollout)).random(num_steps) for rollout in rollouts]
    return torch.from_numpy(np.stack(rows))


def next_token_entropy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shannon entropy, nats, of ``softmax(logits)``, and its weights ``e``.

    A logit of -inf has probability zero. NaN, or +inf, or a row of -inf only, gives NaN. Not for
    training.

    Args:
        logits: ``[batch, V]``.

    Returns:
        ``[batch]`` and ``[batch, V]``, fp32.

    """
    shifted = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    shifted.clamp_min_(torch.finfo(torch.float32).min)  # 0 · -inf would be NaN
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    return total.log() - (weights * shifted).sum(dim=-1) / total, weights


def inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative probability exceeds its row's uniform.

    Args:
        weights: ``[batch, V]`` fp32, in proportion to the probabilities.
        uniforms: ``[batch]`` in [0, 1), in the device's wide dtype.

    Returns:
        ``[batch]`` int64; a token of weight zero is never it, unless all are zero or NaN.

    """
    wide, vocabulary = uniforms.dtype, weights.shape[-1]
    whole = vocabulary // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(dim=-1, dtype=wide)
    if whole < vocabulary:
        rest = weights[:, whole:].sum(dim=-1, keepdim=True, dtype=wide)
        sums = torch.cat([sums, rest], dim=-1)
    cumulative = sums.cumsum(dim=-1)
    target = uniforms.unsqueeze(1) * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = cumulative.gather(1, block) - sums.gather(1, block)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, tokens.clamp_max(vocabulary - 1)).to(wide)
    inside.masked_fill_(tokens >= vocabulary, 0.0)
    place = _first_above(inside.cumsum(dim=-1), target - before)
    return (block * _BLOCK + place).squeeze(1).clamp_max(vocabulary - 1)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``[batch, 1]``: the first place above the target, or the last that adds something."""
    # right=True: strictly above, so that a place that adds nothing is never it.
    first = torch.searchsorted(cumulative, target, right=True)
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(first, last)  # the two levels round apart by 1e-16


class TokenSampler:
    """Chooses tokens as ``settings`` say; the same for any batch."""

    def __init__(self, settings: Sampling) -> None:
        self._warpers = LogitsProcessorList()  # none that would change nothing
        if settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k > 0:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(
        self, logits: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one token per row.

        Args:
            logits: ``[batch, V]``, as the model gives them.
            uniforms: ``[batch]``, in the device's wide dtype.

        Returns:
            Tokens ``[batch]`` int64; entropies ``[batch]`` fp32, nats, at temperature 1, which are
            NaN where the logits are NaN or infinite.

        """
        rows = max(1, _CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        parts = [
            self._draw(*part) for part in zip(logits.split(rows), uniforms.split(rows), strict=True)
        ]
        tokens, entropies = zip(*parts, strict=True)
        return torch.cat(tokens), torch.cat(entropies)

    def _draw(
        self, logits: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        entropies, weights = next_token_entropy(logits)
        if self._warpers:
            weights = self._warpers(None, logits).softmax(dim=-1, dtype=torch.float32)
        return inverse_cdf(weights, uniforms), entropies


class SamplingProcessor(LogitsProcessor):
    """``TokenSampler`` inside ``generate`` with ``do_sample=False``.

    The chosen token of each row is left as the only possible one, for argmax to return.
    """

    def __init__(self, sampler: TokenSampler, prompt_width: int, uniforms: torch.Tensor) -> None:
        self._sampler = sampler
        self._prompt_width = prompt_width
        self._uniforms = uniforms
        self._entropies: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``[batch, V]`` raw logits -> 0 at the chosen token of each row and -inf elsewhere."""
        step = input_ids.shape[1] - self._prompt_width
        # Deferred stopping may run one step more than asked for; that step is thrown away.
        uniforms = self._uniforms[:, min(step, self._uniforms.shape[1] - 1)]
        tokens, entropies = self._sampler(scores, uniforms)
        self._entropies.append(entropies)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)

    def entropies(self) -> torch.Tensor:
        """``[batch, steps]`` fp32, nats; without meaning after a row's end of sequence."""
        return torch.stack(self._entropies, dim=1)


# Rows that have ended stay until they are this share of the batch: leaving copies all the others.
_LEAVING = 16


def reads_keys_and_values(checkpoint: LoadedCheckpoint) -> bool:
    """Whether rows of the model's cache may be copied and taken away."""
    accepted = inspect.signature(checkpoint.inner_model.forward).parameters
    return (
        checkpoint.pads
        and {"position_ids", "logits_to_keep", "past_key_values"} <= set(accepted)
        and room_for(checkpoint.inner_model, 0) is not None
    )


def room_for(model: Any, tokens: int) -> DynamicCache | None:
    """An empty cache with room for so many tokens a row; None where the model keeps other things.

    Args:
        model: a transformers model.
        tokens: of a row; more are possible and cost a copy.

    """
    cache = DynamicCache(config=model.config)
    if not {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    # Rows end at the same place, so a window of the last places is one of the last tokens.
    cache.layers = [
        RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, which need not be copied to grow."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._room: list[torch.Tensor] = []  # of keys, of values: [rows, heads, tokens, width]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[rows, heads, new, width]`` and return all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        length = seen + key_states.shape[-2]
        if not self._room or self._room[0].shape[-2] < length:
            self._grow(max(length, self._tokens), seen, key_states, value_states)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, seen:length] = states
        self.keys, self.values = (room[:, :, :length] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, room included."""
        length = self.get_seq_length()
        self._room = [room.index_select(0, indices) for room in self._room]
        self.keys, self.values = (room[:, :, :length] for room in self._room)

    def _grow(self, length: int, seen: int, *states: torch.Tensor) -> None:
        held = self._room
        self._room = [s.new_empty(*s.shape[:2], length, s.shape[-1]) for s in states]
        for room, old in zip(self._room, held, strict=False):
            room[:, :, :seen] = old[:, :, :seen]


def decode(
    checkpoint: LoadedCheckpoint,
    prompts: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    sampler: TokenSampler,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one completion per row, of as many tokens as there are uniforms at most.

    Args:
        checkpoint: for which `reads_keys_and_values`, set up for generation.
        prompts: token ids, of each row; those that are equal are read once.
        uniforms: ``[rows, steps]`` in [0, 1).
        sampler: draws each step.

    Returns:
        Tokens ``[rows, steps]`` int64 and entropies ``[rows, steps]`` fp32, nats; what follows a
        row's end of sequence has no meaning.

    """
    device = checkpoint.inner_model.device
    uniforms = uniforms.to(device, wide_dtype(device))
    ends = torch.tensor(checkpoint.eos_token_ids, device=device)
    steps = uniforms.shape[1]
    ids = [tuple(prompt) for prompt in prompts]
    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(ids))}
    logits, mask, cache = _prefill(checkpoint, list(place), steps)
    chosen = torch.tensor([place[prompt] for prompt in ids], device=device)
    rows = torch.arange(len(chosen), device=device)
    cache.batch_select_indices(chosen)
    logits, mask = logits[chosen], mask[chosen]
    drawn = torch.full((len(rows), steps), checkpoint.pad_token_id, device=device)
    entropies = torch.zeros((len(rows), steps), device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for step in range(steps):
        tokens, entropies[rows, step] = sampler(logits, uniforms[rows, step])
        drawn[rows, step] = tokens
        ended |= torch.isin(tokens, ends)
        leaving = int(ended.sum())
        if leaving == len(rows) or step == steps - 1:
            break
        if leaving * _LEAVING >= len(rows):
            stay = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(stay)
            rows, mask, tokens, ended = rows[stay], mask[stay], tokens[stay], ended[stay]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = checkpoint.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=mask,
            position_ids=mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    return drawn, entropies


def _prefill(
    checkpoint: LoadedCheckpoint, prompts: Sequence[Sequence[int]], steps: int
) -> tuple[torch.Tensor, torch.Tensor, DynamicCache]:
    """Logits ``[prompts, V]`` after each prompt, the mask ``[prompts, width]``, the cache."""
    device = checkpoint.inner_model.device
    input_ids, mask = padded(prompts, checkpoint.pad_token_id, left=True)
    cache = room_for(checkpoint.inner_model, input_ids.shape[1] + steps)
    assert cache is not None
    mask = mask.to(device)
    logits = checkpoint.model(
        input_ids=input_ids.to(device),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits, mask, cache


def padded(
    rows: Sequence[Sequence[int]], pad_token_id: int, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, ``[rows, width]`` int64; the mask is 0 on padding, left or right."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        input_ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return input_ids, mask
