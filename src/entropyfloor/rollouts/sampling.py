"""What happens to the logits of one generation step: record their entropy, then choose the token.

Both are transformers ``LogitsProcessor``s around transformers' own warpers, used with
``do_sample=False``:

    raw logits ─► EntropyRecorder ─► temperature ─► top-k ─► top-p ─► InverseCDFSampler ─► argmax

    H = log s - (sum_v e_v z_v) / s        z = logits - max,  e = exp(z),  s = sum_v e_v;  nats

The recorder sees the distribution at temperature 1 whatever the warpers do, and keeps one number
per row and step: ``[batch, V]`` exists for one step only, as it does anyway in generation.

``generate``'s own sampling draws from one global stream, so a token depends on which rows share
the batch. Here every rollout owns its uniforms, seeded by (seed, prompt index, sample index), one
per step; the token is the first whose cumulative probability exceeds it. The rollout is then the
same in any batch, up to the rounding of the logits themselves.
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

from entropyfloor.models.ranks import wide_dtype
from entropyfloor.rollouts.options import Sampling


def rollout_uniforms(
    seed: int, rollouts: Sequence[tuple[int, int]], num_steps: int
) -> torch.Tensor:
    """``[len(rollouts), num_steps]`` float64 in [0, 1) on the CPU; row i is of rollouts[i] only.

    ``rollouts`` holds (prompt index, sample index). More steps extend a row and do not change its
    beginning.
    """
    rows = [np.random.default_rng((seed, *rollout)).random(num_steps) for rollout in rollouts]
    return torch.from_numpy(np.stack(rows))


def next_token_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy, nats, of ``softmax(logits)``: ``[batch, V]`` -> ``[batch]`` fp32.

    A logit of -inf has probability zero. NaN, or +inf, or a row of -inf only, gives NaN. Not for
    training.
    """
    shifted = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    weighted = (weights * shifted.clamp_min(torch.finfo(torch.float32).min)).sum(dim=-1)
    return total.log() - weighted / total


class EntropyRecorder(LogitsProcessor):
    """Keeps the next-token entropy of every row and step; leaves the logits alone.

    Raises:
        ValueError: at the first step whose logits are NaN or infinite in a row that still
            generates.

    """

    def __init__(self, prompt_width: int, eos_token_ids: Sequence[int], where: str) -> None:
        self._prompt_width = prompt_width
        self._eos_token_ids = tuple(eos_token_ids)
        self._where = where
        self._running: torch.Tensor | None = None
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``[batch, width]`` ids so far and ``[batch, V]`` raw logits -> the same logits."""
        if self._running is None:
            self._running = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
            self._eos = torch.tensor(self._eos_token_ids, device=scores.device)
        elif len(self._eos_token_ids):
            self._running &= ~torch.isin(input_ids[:, -1], self._eos)
        entropy = next_token_entropy(scores)
        if not bool((entropy.isfinite() | ~self._running).all()):
            step = input_ids.shape[1] - self._prompt_width
            raise ValueError(
                f"{self._where} gave logits that are NaN or infinite at generated token {step}; "
                "the checkpoint is damaged, or overflows in this dtype: try dtype float32 or "
                "bfloat16"
            )
        self._steps.append(entropy)
        return scores

    def entropies(self) -> np.ndarray:
        """``[batch, steps]`` float32, nats; without meaning after a row's end of sequence."""
        return torch.stack(self._steps, dim=1).cpu().numpy()


class InverseCDFSampler(LogitsProcessor):
    """Chooses a token by inverse CDF and leaves only it possible, for argmax to return."""

    def __init__(self, prompt_width: int, uniforms: torch.Tensor) -> None:
        self._prompt_width = prompt_width
        self._uniforms = uniforms

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``[batch, V]`` warped logits -> 0 at the chosen token of each row and -inf elsewhere."""
        step = input_ids.shape[1] - self._prompt_width
        # Deferred stopping may run one step more than asked for; that step is thrown away.
        uniform = self._uniforms[:, min(step, self._uniforms.shape[1] - 1)].unsqueeze(1)
        # fp32 sums would lose every token past the first that brings the sum within 6e-8 of 1.
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)
        cumulative = probabilities.to(wide_dtype(scores.device)).cumsum(dim=-1)
        target = uniform.to(cumulative) * cumulative[:, -1:]
        # right=True: the first cumulative value *above* the target, so a token of probability zero
        # is never it.
        chosen = torch.searchsorted(cumulative, target, right=True)
        chosen = chosen.clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def processors(
    recorder: EntropyRecorder, sampler: InverseCDFSampler, settings: Sampling
) -> LogitsProcessorList:
    """Build the chain of this module's docstring, without warpers that would change nothing."""
    chain: list[LogitsProcessor] = [recorder]
    if settings.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chain.append(TopPLogitsWarper(settings.top_p))
    return LogitsProcessorList([*chain, sampler])
