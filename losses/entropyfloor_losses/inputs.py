"""What the inputs of every engine may be: constants, the dtype of statistics, refusals in words."""

from __future__ import annotations

import math
from collections.abc import Callable
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
