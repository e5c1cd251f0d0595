"""Two models on the same tokens: losses, both KL divergences, and the rise in loss against the KL.

    nll_sft, nll_rl      -log p(y_t)
    forward              sum_v p_sft (log p_sft - log p_rl)       KL(p_sft || p_rl)
    reverse              sum_v p_rl (log p_rl - log p_sft)        KL(p_rl || p_sft)

at every position of given completions, at temperature 1, nats. Hidden states go through both heads
a chunk at a time: two ``[chunk, V]`` blocks of logits and a few of their size, whatever the number
of tokens (``tests/bench/kl.py`` measures it).

A KL that is summed along samples of one model is the KL of whole answers in that direction: forward
along samples of the SFT model, reverse along samples of the RL model. Along other texts it is a
mean over contexts that somebody else chose, and is reported per token only.

The identity: is it there, and if not, why not.

    rise  = mean over demonstrations y of   log p_sft(y) - log p_rl(y)            nats per answer
    KL    = mean over SFT samples y of      sum_t KL(p_sft(.|y_<t) || p_rl(.|y_<t))
    KL_D  = the same sum over the contexts of the demonstrations

    rise - KL = (rise - KL_D) + (KL_D - KL)
                 tokens          contexts

arXiv:2601.07389, Theorem 3.1, says rise = KL at an SFT optimum and on the distribution of the
demonstrations. The first term is zero if the SFT model predicts the next token of the
demonstrations as it comes: not so on held-out rows of a model that is over- or underfitted. The
second is zero if its own samples visit the contexts that demonstrations visit.

The identity is one of whole answers. Per token it would compare means over answers of different
lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.teacher_forced import Completion, head_logits, values_by_row
from entropyfloor.stats.intervals import Interval, bootstrap_interval


@dataclass(frozen=True)
class PairSums:
    """Sums over the tokens of each completion, nats; all ``[completions]``.

    ``prompts`` is the index of the prompt that each completion is for.
    """

    prompts: Sequence[int]
    tokens: Sequence[float]
    nll_sft: Sequence[float]
    nll_rl: Sequence[float]
    forward: Sequence[float]
    reverse: Sequence[float]

    @property
    def log_ratios(self) -> np.ndarray:
        """``log p_sft(y) - log p_rl(y)`` of each completion."""
        return np.asarray(self.nll_rl) - np.asarray(self.nll_sft)

    def by_prompt(self, values: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
        """Sum, over the completions of each of ``count`` prompts, of one of the above."""
        weights = np.asarray(values, dtype=float)
        return np.bincount(np.asarray(self.prompts), weights=weights, minlength=count)


@dataclass(frozen=True)
class Identity:
    """Nats per answer; intervals by name (``rise``, ``kl``, ``gap``, ``tokens``, ``contexts``)."""

    rise: float  # of the SFT loss on the demonstrations
    kl: float  # KL(p_sft || p_rl) on the SFT model's own samples for the same prompts
    # The same from sampled log ratios instead of exact KLs at every token: agrees with kl up to
    # sampling noise, which is a check of the instrument
    kl_sampled: float
    gap: float  # rise - kl
    tokens: float  # part of the gap
    contexts: float  # part of the gap
    intervals: dict[str, Interval]  # 95 %, resampling prompts


def pair_sums(
    sft: LoadedCheckpoint, rl: LoadedCheckpoint, completions: Sequence[Completion]
) -> PairSums:
    """Read every completion with both models.

    Raises:
        ValueError: heads of different sizes.

    """

    def values(hidden: Tensor, labels: Tensor, other: Tensor) -> Tensor:
        logits, others = head_logits(sft, hidden), head_logits(rl, other).to(hidden.device)
        if logits.shape != others.shape:
            raise ValueError(
                f"{sft.path} has {logits.shape[-1]} tokens in its head and {rl.path} "
                f"{others.shape[-1]}; a KL needs models of one vocabulary, such as a run and the "
                "model that it started from"
            )
        return torch.stack(both_divergences(logits, others, labels), dim=-1)

    columns = torch.zeros(len(completions), 5, dtype=torch.float64)
    for row, part in values_by_row((sft, rl), completions, values):
        columns[row, 0], columns[row, 1:] = len(part), part.sum(0)
    prompts = [completion.prompt_index for completion in completions]
    return PairSums(prompts, *columns.T.tolist())


def identity(
    rises: Sequence[float],
    demonstration_kls: Sequence[float],
    sample_kls: Sequence[float],
    sample_ratios: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Identity:
    """Put the parts together, one number per prompt in each sequence, nats per answer.

    Args:
        rises: ``log p_sft - log p_rl`` of each demonstration.
        demonstration_kls: summed KLs at its tokens.
        sample_kls: mean over the SFT model's samples for the prompt of their summed KLs.
        sample_ratios: mean over the same samples of ``log p_sft - log p_rl``.
        weights: how often each prompt comes; equally often when left out.
        seed: of the bootstrap.

    """
    count = len(rises)
    if not count or any(len(s) != count for s in (demonstration_kls, sample_kls, sample_ratios)):
        raise ValueError(
            "the identity needs one number per prompt, for the same prompts, in every part; got "
            f"{[len(s) for s in (rises, demonstration_kls, sample_kls, sample_ratios)]}"
        )
    rise, on_demos, on_samples, ratios = (
        np.asarray(s, dtype=np.float64)
        for s in (rises, demonstration_kls, sample_kls, sample_ratios)
    )
    below = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    parts = {
        "rise": rise,
        "kl": on_samples,
        "gap": rise - on_samples,
        "tokens": rise - on_demos,
        "contexts": on_demos - on_samples,
    }
    intervals = {}
    for name, values in parts.items():
        interval = bootstrap_interval((values * below).tolist(), below.tolist(), seed=seed)
        if interval is not None:
            intervals[name] = interval
    mean = {name: float((v * below).sum() / below.sum()) for name, v in parts.items()}
    return Identity(
        **mean, kl_sampled=float((ratios * below).sum() / below.sum()), intervals=intervals
    )


def both_divergences(
    logits: Tensor, other: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``-log p`` and ``-log q`` of the labels, KL(p || q) and KL(q || p), each ``[n]``.

    A token of probability 0 counts nothing, also where the other model gives it -inf.

    Args:
        logits: ``[n, V]``, fp32 or fp64; overwritten, as is ``other``: with two more blocks of
            their size this is all the memory that it takes.
        other: ``[n, V]``.
        labels: ``[n]``.

    """
    log_p, log_q = (z.sub_(z.logsumexp(-1, keepdim=True)) for z in (logits, other))
    nll, other_nll = (-log.gather(1, labels[:, None])[:, 0] for log in (log_p, log_q))
    difference = log_p - log_q
    divergences = []
    for log in (log_p, log_q):
        probability = log.exp_()
        weighted = probability.mul(difference)
        divergences.append(weighted.masked_fill_(probability == 0.0, 0.0).sum(-1))
        del weighted
    return nll, other_nll, divergences[0], -divergences[1]
