"""The base model of ``base_kl``, in two forms: its states and head, or its most likely tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .statistics import MASKED_LOGIT, StatisticsRequest, statistics_dtype


@dataclass(frozen=True)
class BaseHead:
    """The base model of ``base_kl`` at the positions of a call.

    Scale, soft cap and temperature are those of the call.

    Args:
        hidden: ``[..., H']`` last hidden states, the leading dimensions of the labels.
        weight: ``[V, H']`` head weight, the dtype of ``hidden`` (any floating one under autocast).
        bias: ``[V]`` or None.

    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class BaseTopK:
    """What is left of the base model where its head is not at hand: its k most likely tokens.

    The forward KL is then that of k + 1 events, the last being "any other token": never more than
    the KL over the vocabulary, and equal to it where the model spreads the rest as the base does.

    Args:
        indices: ``[..., k]`` int64 token ids, the leading dimensions of the labels.
        log_probs: ``[..., k]`` their log-probabilities under the base, floating.

    """

    indices: Tensor
    log_probs: Tensor


def check_base_shapes(
    base: BaseHead | BaseTopK, labels: Tensor, vocabulary: int, request: StatisticsRequest
) -> None:
    """Refuse a base that does not fit the labels and vocabulary, and a KL it cannot give."""
    if isinstance(base, BaseTopK):
        _check_top_k(base, labels, vocabulary, request)
        return
    expected = (*labels.shape, base.weight.shape[-1])
    if base.weight.ndim != 2 or base.weight.shape[0] != vocabulary:
        raise ValueError(
            f"the base head has shape {tuple(base.weight.shape)} and the model has {vocabulary} "
            "tokens; the KL needs the same vocabulary"
        )
    if base.hidden.shape != expected:
        raise ValueError(
            f"the base's hidden states have shape {tuple(base.hidden.shape)}; they must be "
            f"{expected}, one per label"
        )


def _check_top_k(
    base: BaseTopK, labels: Tensor, vocabulary: int, request: StatisticsRequest
) -> None:
    if request.base_kl == "reverse":
        raise ValueError(
            "KL(p || b) needs the base's whole distribution; its most likely tokens give the "
            'forward KL alone: base_kl="forward"'
        )
    if base.indices.shape != base.log_probs.shape or base.indices.shape[:-1] != labels.shape:
        raise ValueError(
            f"the base's indices have shape {tuple(base.indices.shape)} and its log_probs "
            f"{tuple(base.log_probs.shape)}; both must be {(*labels.shape, 'k')}, k per label"
        )
    if base.indices.shape[-1] > vocabulary:
        raise ValueError(
            f"the base has {base.indices.shape[-1]} tokens per label, more than the vocabulary of "
            f"{vocabulary}"
        )


def scored_base(
    base: BaseHead | BaseTopK | None, scored: Tensor, compute_dtype: torch.dtype
) -> BaseHead | BaseTopK | None:
    """The base at scored tokens, without gradient, in the dtypes of the computation."""
    dtype = statistics_dtype(compute_dtype)
    if isinstance(base, BaseTopK):
        return BaseTopK(base.indices[scored], base.log_probs.detach()[scored].to(dtype))
    if base is None:
        return None
    return BaseHead(
        base.hidden.detach()[scored].to(compute_dtype),
        base.weight.detach().to(compute_dtype),
        finite_bias(base.bias, dtype),
    )


def finite_bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias in the logits' dtype, with a finite stand-in for a masked vocabulary's -inf."""
    return None if bias is None else bias.detach().to(dtype).clamp(min=MASKED_LOGIT)
