"""Token statistics: the per-token numbers that losses, logs, controllers and screens share.

    log_prob           log p_y
    entropy            H = -sum_v p_v log p_v          (Shannon, nats)
    top_k_mass         sum of the k largest p_v        (no gradient)
    is_top1            argmax_v p_v == y               (no gradient; the first maximum wins a tie)
    mean_log_prob      (1/V) sum_v log p_v             (label smoothing)
    tempered_log_prob  sum_v q_v log p_v, q = softmax(z / beta) without gradient   (GEM)
    support_entropy    entropy of p renormalised on its k most likely tokens (which k: no gradient)
    base_kl            KL(b || p), or KL(p || b) if reversed; b a base model's distribution

with z the final logits of one position, p = softmax(z), y its label. This file holds the
vocabulary of the package and the readable reference, plain torch on full logits.
``fused_head.py`` computes the same from (hidden, head weight) without ever holding ``[N, V]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

IGNORE_INDEX = -100
# -inf logits (a masked vocabulary) mean probability zero. A finite stand-in keeps 0 * log 0 at 0;
# exp(MASKED - max) underflows to exactly 0 in fp32 and fp64 for any sane maximum.
MASKED_LOGIT = -1e30


@dataclass(frozen=True)
class StatisticsRequest:
    """Which statistics a loss needs beyond the ones that are always there.

    Args:
        top_k: k of ``top_k_mass``; at least 1, at most the vocabulary size.
        mean_log_prob: compute ``mean_log_prob`` (label smoothing).
        gem_beta: compute ``tempered_log_prob`` at this beta > 0 (GEM); None leaves it out.
        support_k: compute ``support_entropy`` on this many tokens >= 2; None leaves it out.
        base_kl: compute ``base_kl`` in this direction; None leaves it out.

    """

    top_k: int = 2
    mean_log_prob: bool = False
    gem_beta: float | None = None
    support_k: int | None = None
    base_kl: Literal["forward", "reverse"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k!r}; it must be an integer >= 1")
        if self.gem_beta is not None:
            check_positive("gem_beta", self.gem_beta)
        if self.support_k is not None and self.support_k < 2:
            raise ValueError(f"support_k is {self.support_k!r}; it must be an integer >= 2")
        if self.base_kl not in (None, "forward", "reverse"):
            raise ValueError(f'base_kl is {self.base_kl!r}; choose "forward" or "reverse"')


@dataclass(frozen=True)
class TokenStatistics:
    """Per-token statistics. Every field has the labels' shape; ignored positions are exactly 0.

    Attributes:
        log_prob: log-probability of the label, nats, <= 0. Floating (fp32, or fp64 for fp64 input).
        entropy: Shannon entropy of the next-token distribution, nats, in [0, log V].
        top_k_mass: probability of the k most likely tokens, in (0, 1]. Not differentiable.
        is_top1: bool, whether the label is the (first) most likely token.
        scored: bool, False where the label is -100.
        mean_log_prob: mean of log p over the vocabulary, or None when not requested.
        tempered_log_prob: GEM's sum_v q_v log p_v with q detached, or None when not requested.
        support_entropy: entropy within the k most likely tokens, nats, in [0, log k], or None.
        base_kl: KL divergence between base and model, nats, >= 0, or None when not requested.
        advantage: what the caller gave for each token, or None; a constant.

    All floating ones except ``top_k_mass`` carry gradients when they come from `token_statistics`
    or `linear_token_statistics`; those returned by `linear_loss` are detached, because its
    gradient has been taken already.

    """

    log_prob: Tensor
    entropy: Tensor
    top_k_mass: Tensor
    is_top1: Tensor
    scored: Tensor
    mean_log_prob: Tensor | None = None
    tempered_log_prob: Tensor | None = None
    support_entropy: Tensor | None = None
    base_kl: Tensor | None = None
    advantage: Tensor | None = None

    def where_scored(self, values: Tensor) -> Tensor:
        """``values``, exactly 0 (and without gradient) where the label is -100."""
        return torch.where(self.scored, values, torch.zeros_like(values))


def token_statistics(
    logits: Tensor,
    labels: Tensor,
    *,
    top_k: int = 2,
    request: StatisticsRequest | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    base_logits: Tensor | None = None,
    advantages: Tensor | None = None,
) -> TokenStatistics:
    """Token statistics from full logits: the readable reference, differentiable by plain autograd.

    Labels are not shifted: position i of ``logits`` predicts position i of ``labels``.

    Args:
        logits: ``[..., V]``, any floating dtype; the softmax is done in fp32 (fp64 for fp64).
        labels: ``[...]`` int64, values in [0, V) or -100 for positions to ignore.
        top_k: k of ``top_k_mass``; shorthand for ``request=StatisticsRequest(top_k=...)``.
        request: a loss's full request (``loss.request``); replaces ``top_k``.
        temperature: > 0; logits are divided by it before the softmax.
        softcap: c > 0 maps logits to ``c * tanh(logits / c)`` (Gemma 2). HF models' own logits are
            already capped and scaled: leave the defaults for them.
        logit_scale: factor on the raw logits, before the cap (Cohere; Granite: 1 / logits_scaling).
        base_logits: ``[..., V]`` of the base model, raw like ``logits`` and turned into final ones
            the same way; needed for ``base_kl``, without gradient.
        advantages: ``[...]``, the labels' shape: handed on to the loss as ``advantage``.

    Raises:
        ValueError: shapes that do not match, labels out of range, k > V, NaN or +inf logits.

    """
    request = request or StatisticsRequest(top_k=top_k)
    check_head_options(temperature, softcap, logit_scale)
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "they must be [..., V] and [...] with the same leading dimensions"
        )
    check_labels(labels, logits.shape[-1])
    check_top_k(max(request.top_k, request.support_k or 1), logits.shape[-1])
    check_base(request, base_logits is not None)
    check_advantages(advantages, labels)

    def final(raw: Tensor) -> Tensor:
        z = raw.to(statistics_dtype(raw.dtype)) * logit_scale
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        return z / temperature

    z = final(logits)
    scored = labels != IGNORE_INDEX
    if bool((torch.isnan(z) | (z == math.inf)).any(-1).logical_and(scored).any()):
        raise ValueError(nonfinite_message("the logits"))
    z = z.clamp(min=MASKED_LOGIT)

    log_p = torch.log_softmax(z, dim=-1)
    safe_labels = labels.clamp(min=0)
    log_prob = log_p.gather(-1, safe_labels.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    with torch.no_grad():
        top_k_mass = log_p.exp().topk(request.top_k, dim=-1).values.sum(-1).clamp(max=1.0)
        is_top1 = (z.argmax(-1) == safe_labels) & scored
    mean_log_prob = log_p.mean(-1) if request.mean_log_prob else None
    tempered = None
    if request.gem_beta is not None:
        q = torch.softmax(z.detach() / request.gem_beta, dim=-1)
        tempered = (q * log_p).sum(-1)
    support_entropy = None
    if request.support_k is not None:
        within = log_p.topk(request.support_k, dim=-1).values.log_softmax(-1)
        support_entropy = -(within.exp() * within).sum(-1)
    base_kl = None
    if base_logits is not None:
        log_b = torch.log_softmax(final(base_logits.detach()).clamp(min=MASKED_LOGIT), dim=-1)
        if request.base_kl == "reverse":
            base_kl = (log_p.exp() * (log_p - log_b)).sum(-1)
        else:
            base_kl = (log_b.exp() * (log_b - log_p)).sum(-1)

    def at_scored(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(scored, values, torch.zeros_like(values))

    present: dict[str, Any] = {
        "log_prob": at_scored(log_prob),
        "entropy": at_scored(entropy),
        "top_k_mass": at_scored(top_k_mass),
        "mean_log_prob": at_scored(mean_log_prob),
        "tempered_log_prob": at_scored(tempered),
        "support_entropy": at_scored(support_entropy),
        "base_kl": at_scored(base_kl),
        "advantage": None if advantages is None else at_scored(advantages.detach().to(z.dtype)),
    }
    return TokenStatistics(is_top1=is_top1, scored=scored, **present)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 input, fp32 for everything else: the softmax never runs in 16 bit."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_labels(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels that are not int64 in [0, V) or -100."""
    if labels.dtype != torch.int64:
        raise ValueError(f"labels have dtype {labels.dtype}; they must be torch.int64")
    outside = ((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= vocabulary)
    if bool(outside.any()):
        found = labels[outside]
        raise ValueError(
            f"{found.numel()} label(s) are out of range, the first is {int(found[0])}; "
            f"labels must be in [0, {vocabulary}) or {IGNORE_INDEX} to be ignored. "
            "Do the tokenizer and the model have the same vocabulary?"
        )


def check_top_k(top_k: int, vocabulary: int) -> None:
    """Refuse k larger than the vocabulary."""
    if top_k > vocabulary:
        raise ValueError(f"top_k is {top_k}, more than the vocabulary of {vocabulary} tokens")


def check_base(request: StatisticsRequest, given: bool) -> None:
    """Refuse a KL without a base, and a base that nobody asked for."""
    if given != (request.base_kl is not None):
        raise ValueError(
            "a base model's head was given but request.base_kl is None: nothing would use it"
            if given
            else f"request.base_kl is {request.base_kl!r} and no base model's head was given"
        )


def check_advantages(advantages: Tensor | None, labels: Tensor) -> None:
    """Refuse advantages that are not one finite number per label."""
    if advantages is None:
        return
    if advantages.shape != labels.shape:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)} and labels {tuple(labels.shape)}; "
            "give one advantage per label (a response's advantage at each of its tokens)"
        )
    if not bool(torch.isfinite(advantages).all()):
        raise ValueError("advantages hold NaN or infinite values; were all rewards numbers?")


def check_head_options(temperature: float, softcap: float | None, logit_scale: float) -> None:
    """Refuse a temperature or soft cap that is not positive, and a logit scale of 0 or NaN."""
    check_positive("temperature", temperature)
    if softcap is not None:
        check_positive("softcap", softcap)
    if not math.isfinite(logit_scale) or logit_scale == 0:
        raise ValueError(f"logit_scale is {logit_scale!r}; it must be a finite number other than 0")


def check_positive(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; it must be a number > 0")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number > 0")


def nonfinite_message(where: str) -> str:
    """Say what NaN or +inf logits mean and what to do about them."""
    return (
        f"{where} contain NaN or +inf at scored positions. Look for a diverged run (lower the "
        "learning rate, clip gradients), fp16 overflow (use bf16) or a broken checkpoint"
    )
