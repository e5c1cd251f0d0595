"""The reference model of ``reference_kl``: its states and head, or its most likely tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import MASKED_LOGIT, statistics_dtype


@dataclass(frozen=True)
class ReferenceHead:
    """The reference model of ``reference_kl`` at the positions of a call.

    Scale, soft cap and temperature are those of the call.

    Args:
        hidden: ``[..., H']`` last hidden states, the leading dimensions of the labels.
        weight: ``[V, H']`` head weight, the dtype of ``hidden`` (any floating one under autocast).
        bias: ``[V]`` or None.

    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def check(self, labels: Tensor, vocabulary: int) -> None:
        """Refuse a reference that does not fit the labels and the vocabulary."""
        if self.weight.ndim != 2 or self.weight.shape[0] != vocabulary:
            raise ValueError(
                f"the reference head has shape {tuple(self.weight.shape)} and the model has "
                f"{vocabulary} tokens; the KL needs the same vocabulary"
            )
        expected = (*labels.shape, self.weight.shape[-1])
        if self.hidden.shape != expected:
            raise ValueError(
                f"the reference's hidden states have shape {tuple(self.hidden.shape)}; they must "
                f"be {expected}, one per label"
            )

    def at(self, tokens: Tensor, compute_dtype: torch.dtype) -> ReferenceHead:
        """The reference at the tokens whose flat positions are given, without gradient."""
        return ReferenceHead(
            self.hidden.detach().flatten(0, -2).index_select(0, tokens).to(compute_dtype),
            self.weight.detach().to(compute_dtype),
            finite_bias(self.bias, statistics_dtype(compute_dtype)),
        )


@dataclass(frozen=True)
class ReferenceTopK:
    """What is left of the reference model where its head is not at hand: its k most likely tokens.

    The KL is then that of k + 1 events, the last being "any other token": never more than the KL
    over the vocabulary, and equal to it where the model spreads the rest as the reference does.

    Args:
        indices: ``[..., k]`` int64 token ids, the leading dimensions of the labels.
        log_probs: ``[..., k]`` their log-probabilities under the reference, floating.
        label_log_probs: ``[...]`` those of the labels, for ``reference_log_prob``, or None. With
            them k may be 0: ``reference_kl`` cannot be asked for then.

    """

    indices: Tensor
    log_probs: Tensor
    label_log_probs: Tensor | None = None

    def check(self, labels: Tensor, vocabulary: int) -> None:
        """Refuse a reference that does not fit the labels and the vocabulary."""
        if self.indices.shape != self.log_probs.shape or self.indices.shape[:-1] != labels.shape:
            raise ValueError(
                f"the reference's indices have shape {tuple(self.indices.shape)} and its log_probs "
                f"{tuple(self.log_probs.shape)}; both must be {(*labels.shape, 'k')}, k per label"
            )
        of_labels = self.label_log_probs
        if of_labels is not None and of_labels.shape != labels.shape:
            raise ValueError(
                f"the reference's label_log_probs have shape {tuple(of_labels.shape)}; they must "
                f"be {tuple(labels.shape)}, one per label"
            )
        if self.indices.shape[-1] > vocabulary:
            raise ValueError(
                f"the reference has {self.indices.shape[-1]} tokens per label, more than the "
                f"vocabulary of {vocabulary}"
            )

    def at(self, tokens: Tensor, compute_dtype: torch.dtype) -> ReferenceTopK:
        """The reference at the tokens whose flat positions are given, without gradient."""
        dtype, of_labels = statistics_dtype(compute_dtype), self.label_log_probs
        return ReferenceTopK(
            self.indices.flatten(0, -2).index_select(0, tokens),
            self.log_probs.detach().flatten(0, -2).index_select(0, tokens).to(dtype),
            None
            if of_labels is None
            else of_labels.detach().flatten().index_select(0, tokens).to(dtype),
        )

    def rows(self, span: slice) -> ReferenceTopK:
        """The reference at some of its tokens, ``[n, k]``."""
        of_labels = self.label_log_probs
        return ReferenceTopK(
            self.indices[span],
            self.log_probs[span],
            None if of_labels is None else of_labels[span],
        )

    def rest(self) -> Tensor:
        """``[..., 1]`` probability of every other token."""
        return (1.0 - self.log_probs.exp().sum(-1, keepdim=True)).clamp_(min=0.0)


def finite_bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias in the logits' dtype, with a finite stand-in for a masked vocabulary's -inf."""
    return None if bias is None else bias.detach().to(dtype).clamp(min=MASKED_LOGIT)
