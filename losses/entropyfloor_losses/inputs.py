"""What the inputs of every engine may be: constants, the dtype of statistics, refusals in words.

Among them the reference model of ``reference_kl``: its states and head, or its most likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a token that is not scored."""
# -inf logits (a masked vocabulary) mean probability zero. A finite stand-in keeps 0 * log 0 at 0;
# exp(MASKED - max) underflows to exactly 0 in fp32 and fp64 for any sane maximum.
MASKED_LOGIT = -1e30
ADVANTAGES_NOT_FINITE = "advantages hold NaN or infinite values; were all rewards numbers?"


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 input, fp32 for everything else: the softmax never runs in 16 bit."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_labels(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels that are not int64 in [0, V) or -100."""
    outside = outside_labels(labels, vocabulary)
    if bool(outside.any()):
        refuse_labels(labels[outside], vocabulary)


def outside_labels(labels: Tensor, vocabulary: int) -> Tensor:
    """Mask of the labels that are neither in [0, V) nor -100; without waiting for the device."""
    if labels.dtype != torch.int64:
        raise ValueError(f"labels have dtype {labels.dtype}; they must be torch.int64")
    return ((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= vocabulary)


def refuse_labels(refused: Tensor, vocabulary: int) -> NoReturn:
    """Say what is wrong with them."""
    raise ValueError(
        f"{refused.numel()} label(s) are out of range, the first is {int(refused[0])}; "
        f"labels must be in [0, {vocabulary}) or {IGNORE_INDEX} to be ignored. "
        "Do the tokenizer and the model have the same vocabulary?"
    )


def check_advantages(advantages: Tensor | None, labels: Tensor) -> None:
    """Refuse advantages that are not one finite number per label."""
    if advantages is None:
        return
    check_advantages_shape(advantages, labels)
    if not bool(torch.isfinite(advantages).all()):
        raise ValueError(ADVANTAGES_NOT_FINITE)


def check_advantages_shape(advantages: Tensor, labels: Tensor) -> None:
    """Refuse another shape than the labels'."""
    if advantages.shape != labels.shape:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)} and labels {tuple(labels.shape)}; "
            "give one advantage per label (a response's advantage at each of its tokens)"
        )


def check_number(name: str, value: Any, holds: Callable[[Any], bool], allowed: str) -> None:
    """Refuse a hyper-parameter that is no number (text in a YAML file), or out of range."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and holds(value)):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def check_positive(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is not a finite number above 0."""
    check_number(name, value, lambda v: 0 < v < math.inf, "a finite number > 0")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is not a finite number of at least 0."""
    check_number(name, value, lambda v: 0 <= v < math.inf, "a finite number >= 0")


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is not an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")


def check_switch(name: str, value: bool) -> None:
    """Refuse what is not True; a statistic that is not wanted is left out."""
    if value is not True:
        raise ValueError(f"{name} is {value!r}; it must be True, or be left out")


def nonfinite_message(where: str) -> str:
    """Say what NaN or +inf logits mean and what to do about them."""
    return (
        f"{where} contain NaN or +inf at scored positions. Look for a diverged run (lower the "
        "learning rate, clip gradients), fp16 overflow (use bf16) or a broken checkpoint"
    )


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
