"""From the logits of one generation step: the next token of every row, and the entropy before it.

    raw logits ─► entropy at temperature 1
               └► temperature ─► top-k ─► top-p (transformers' warpers) ─► inverse CDF ─► token

    H = log s - (sum_v e_v z_v) / s        z = logits - max,  e = exp(z),  s = sum_v e_v;  nats

One number per row and step is kept: ``[batch, V]`` exists for one step only, as it does anyway.

``generate``'s own sampling draws from one global stream, so a token depends on which rows share
the batch. Here every rollout owns its uniforms, seeded by (seed, prompt index, sample index), one
per step; the token is the first whose cumulative probability exceeds it. The rollout is then the
same in any batch, up to the rounding of the logits themselves.

The cumulative sum is taken in two levels, over blocks of the vocabulary and inside the one that is
hit, in fp64: sums in fp32 would lose every token past the first that brings the sum within 6e-8 of
1, and one fp64 sum over a vocabulary took longer than all else here. A CPU works on a few rows at a
time, which stay in its cache.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

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
