"""The readable engine: token statistics from full logits, by the plain formula of each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blocks import LogitTransform
from .inputs import (
    IGNORE_INDEX,
    MASKED_LOGIT,
    check_advantages,
    check_labels,
    nonfinite_message,
    statistics_dtype,
)
from .request import StatisticsRequest, TokenStatistics
from .statistics import STATISTICS, Distribution


def token_statistics(
    logits: Tensor,
    labels: Tensor,
    *,
    top_k: int = 2,
    request: StatisticsRequest | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reference_logits: Tensor | None = None,
    advantages: Tensor | None = None,
) -> TokenStatistics:
    """Token statistics from full logits: the readable reference, differentiable by plain autograd.

    Labels are not shifted: position i of ``logits`` predicts position i of ``labels``.

    Args:
        logits: ``[..., V]``, any floating dtype; the softmax is done in fp32 (fp64 for fp64).
        labels: ``[...]`` int64, values in [0, V) or -100 for positions to ignore.
        top_k: k of ``top_k_mass``; shorthand for ``request=StatisticsRequest(top_k=...)``.
        request: a loss's full request (``loss.request``); replaces ``top_k``.
        temperature: above 0; logits are divided by it before the softmax.
        softcap: c > 0 maps logits to ``c * tanh(logits / c)`` (Gemma 2). HF models' own logits are
            already capped and scaled: leave the defaults for them.
        logit_scale: factor on the raw logits, before the cap (Cohere; Granite: 1 / logits_scaling).
        reference_logits: ``[..., V]`` of the reference model, raw like ``logits`` and turned into
            final ones the same way; needed for ``reference_kl`` and ``reference_log_prob``, without
            gradient.
        advantages: ``[...]``, the labels' shape: handed on to the loss as ``advantage``.

    Raises:
        ValueError: shapes that do not match, labels out of range, k > V, NaN or +inf logits.

    """
    request = request or StatisticsRequest(top_k=top_k)
    transform = LogitTransform(logit_scale, softcap, temperature)
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "they must be [..., V] and [...] with the same leading dimensions"
        )
    check_labels(labels, logits.shape[-1])
    request.check(logits.shape[-1], reference_logits)
    check_advantages(advantages, labels)
    scored = labels != IGNORE_INDEX
    z = transform.logits(logits.to(statistics_dtype(logits.dtype)))
    if bool((torch.isnan(z) | (z == math.inf)).any(-1).logical_and(scored).any()):
        raise ValueError(nonfinite_message("the logits"))
    z = z.clamp(min=MASKED_LOGIT)
    log_b = None
    if reference_logits is not None:
        raw = reference_logits.detach().to(statistics_dtype(reference_logits.dtype))
        log_b = torch.log_softmax(transform.logits(raw).clamp(min=MASKED_LOGIT), dim=-1)
    of = Distribution(z, torch.log_softmax(z, dim=-1), labels.clamp(min=0), log_b)

    def at_scored(values: Tensor) -> Tensor:
        return torch.where(scored, values, torch.zeros_like(values))

    values = {}
    for name, option in request.options.items():
        statistic = STATISTICS[name]
        with torch.set_grad_enabled(statistic.add_gradient is not None and torch.is_grad_enabled()):
            values[name] = at_scored(statistic.plain(of, option))
    advantage = None if advantages is None else at_scored(advantages.detach().to(z.dtype))
    return TokenStatistics(scored=scored, advantage=advantage, **values)
