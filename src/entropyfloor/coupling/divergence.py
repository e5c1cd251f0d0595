"""Two models on the same tokens: losses and both KL divergences, exact over the vocabulary.

    nll_sft, nll_rl      -log p(y_t)
    forward              sum_v p_sft (log p_sft - log p_rl)       KL(p_sft || p_rl)
    reverse              sum_v p_rl (log p_rl - log p_sft)        KL(p_rl || p_sft)

at every position of given completions, at temperature 1, nats. Hidden states go through both heads
a chunk at a time: two ``[chunk, V]`` blocks of logits and a few of their size, whatever the number
of tokens (``tests/bench/kl.py`` measures it).

A KL that is summed along samples of one model is the KL of whole answers in that direction: forward
along samples of the SFT model, reverse along samples of the RL model. Along other texts it is a
mean over contexts that somebody else chose, and is reported per token only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.teacher_forced import (
    Completion,
    chunk_tokens,
    completion_hidden,
    head_logits,
    row_batches,
)


@dataclass(frozen=True)
class PairSums:
    """Sums over the tokens of each completion, nats; all ``[completions]``."""

    tokens: tuple[float, ...]
    nll_sft: tuple[float, ...]
    nll_rl: tuple[float, ...]
    forward: tuple[float, ...]
    reverse: tuple[float, ...]

    @property
    def log_ratios(self) -> np.ndarray:
        """``log p_sft(y) - log p_rl(y)`` of each completion."""
        return np.asarray(self.nll_rl) - np.asarray(self.nll_sft)


def pair_sums(
    sft: LoadedCheckpoint, rl: LoadedCheckpoint, completions: Sequence[Completion]
) -> PairSums:
    """Read every completion with both models.

    Raises:
        ValueError: heads of different sizes.

    """
    columns = torch.zeros(len(completions), 5, dtype=torch.float64)
    chunk = chunk_tokens(sft)
    with torch.inference_mode():
        for rows in row_batches(completions):
            batch = [completions[row] for row in rows]
            hidden, other = completion_hidden(sft, batch), completion_hidden(rl, batch)
            labels = torch.tensor([token for completion in batch for token in completion.ids])
            spans = [slice(start, start + chunk) for start in range(0, len(labels), chunk)]
            values = [_values(sft, rl, hidden[s], other[s], labels[s]) for s in spans]
            lengths = [len(completion.ids) for completion in batch]
            for row, part in zip(rows, torch.cat(values).split(lengths), strict=True):
                columns[row] = torch.cat([torch.tensor([float(len(part))]).double(), part.sum(0)])
    return PairSums(*(tuple(column) for column in columns.T.tolist()))


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


def _values(
    sft: LoadedCheckpoint, rl: LoadedCheckpoint, hidden: Tensor, other: Tensor, labels: Tensor
) -> Tensor:
    """``[n, 4]`` fp64 on the CPU."""
    logits, others = head_logits(sft, hidden), head_logits(rl, other).to(hidden.device)
    if logits.shape != others.shape:
        raise ValueError(
            f"{sft.path} has {logits.shape[-1]} tokens in its head and {rl.path} "
            f"{others.shape[-1]}; a KL needs models of one vocabulary, such as a run and the model "
            "that it started from"
        )
    columns = both_divergences(logits, others, labels.to(hidden.device))
    return torch.stack(columns, dim=-1).double().cpu()
