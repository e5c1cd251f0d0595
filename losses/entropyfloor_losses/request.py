"""What a loss asks for, what it is given, and how its values become one number.

A batch may be cut into micro-batches and spread over ranks with unequal numbers of scored tokens.
A mean of means then weights tokens unequally; a sum over the count of the *whole* batch does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import ReferenceTopK
from .statistics import STATISTICS


class StatisticsRequest:
    """Which statistics to compute: the ones that are always there, and those that are asked for.

    Args:
        options: ``top_k``, k of ``top_k_mass`` (2); ``mean_log_prob=True``; ``gem_beta``, beta > 0
            of ``tempered_log_prob``; ``top_k_entropy``, its k >= 2; ``collision_prob=True``;
            ``reference_log_prob=True``; ``reference_kl=True``. None leaves a statistic out.

    Attributes:
        options: by the statistic's name, in the order of `STATISTICS`.

    Raises:
        ValueError: an unknown option, or a value that it cannot have.

    """

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {}
        for name, statistic in STATISTICS.items():
            option = statistic.option
            value = options.pop(option, None)
            if value is None or (value is False and statistic.default is None):
                value = statistic.default
            if value is not None:
                statistic.check(option, value)
                self.options[name] = value
        if options:
            known = ", ".join(s.option for s in STATISTICS.values())
            raise ValueError(
                f"no statistic has the option {', '.join(map(repr, options))}; they are {known}"
            )

    @property
    def top_k(self) -> int:
        """K of ``top_k_mass``."""
        return int(self.options["top_k_mass"])

    @property
    def likeliest(self) -> int:
        """How many of the most likely tokens have to be found."""
        return max(STATISTICS[name].likeliest(value) for name, value in self.options.items())

    def including(self, **options: Any) -> StatisticsRequest:
        """The same request with these options."""
        mine = {STATISTICS[name].option: value for name, value in self.options.items()}
        return StatisticsRequest(**{**mine, **options})

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model has to be given."""
        return any(STATISTICS[name].of_reference for name in self.options)

    def check(self, vocabulary: int, reference: Any) -> None:
        """Refuse k above the vocabulary, and a reference that is missing, unused or too small."""
        for name, value in self.options.items():
            if STATISTICS[name].likeliest(value) > vocabulary:
                raise ValueError(
                    f"{STATISTICS[name].option} is {value}, more than the vocabulary of "
                    f"{vocabulary} tokens"
                )
        asked = " and ".join(name for name in self.options if STATISTICS[name].of_reference)
        if (reference is not None) != bool(asked):
            raise ValueError(
                f"{asked} was asked for and no reference model was given: pass "
                "reference=ReferenceHead(...) or ReferenceTopK(...) to the fused engines, "
                "reference_logits=... to token_statistics"
                if asked
                else "a reference was given but nothing would use it: the request has neither "
                "reference_kl=True nor reference_log_prob=True"
            )
        if not isinstance(reference, ReferenceTopK):
            return
        if "reference_log_prob" in self.options and reference.label_log_probs is None:
            raise ValueError("reference_log_prob needs ReferenceTopK's label_log_probs: give them")
        if "reference_kl" in self.options and not reference.indices.shape[-1]:
            raise ValueError("reference_kl was asked for and no likely token was given (k is 0)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StatisticsRequest) and self.options == other.options

    def __hash__(self) -> int:
        return hash(tuple(self.options.items()))

    def __repr__(self) -> str:
        options = {STATISTICS[name].option: v for name, v in self.options.items()}
        return f"StatisticsRequest({', '.join(f'{k}={v!r}' for k, v in options.items())})"


class TokenStatistics:
    """Per-token statistics. Every field has the labels' shape; ignored positions are exactly 0.

    Attributes:
        log_prob: log-probability of the label, nats, <= 0. Floating (fp32, or fp64 for fp64 input).
        entropy: Shannon entropy of the next-token distribution, nats, in [0, log V].
        top_k_mass: probability of the k most likely tokens, in (0, 1]. Not differentiable.
        is_top1: bool, whether the label is the (first) most likely token.
        scored: bool, False where the label is -100.
        mean_log_prob: mean of log p over the vocabulary, on request.
        tempered_log_prob: GEM's sum_v q_v log p_v with q detached, on request.
        top_k_entropy: entropy within the k most likely tokens, nats, in [0, log k], on request.
        collision_prob: sum of p_v^2, in [1/V, 1], on request. Not differentiable.
        reference_log_prob: log-probability of the label under the reference model, nats, on
            request, a constant.
        reference_kl: KL divergence from the reference model to the model, nats, >= 0, on request.
        advantage: what the caller gave for each token, a constant: of its response, or a weight
            of its sequence.

    All other floating ones except ``top_k_mass`` carry gradients when they come from
    `token_statistics` or `linear_token_statistics`; those returned by `linear_loss` are detached,
    because its gradient has been taken already.

    Raises:
        ValueError: reading a statistic that was not asked for; `get` returns None instead.

    """

    log_prob: Tensor
    entropy: Tensor
    top_k_mass: Tensor
    is_top1: Tensor
    scored: Tensor
    mean_log_prob: Tensor
    tempered_log_prob: Tensor
    top_k_entropy: Tensor
    collision_prob: Tensor
    reference_log_prob: Tensor
    reference_kl: Tensor
    advantage: Tensor

    def __init__(self, *, scored: Tensor, advantage: Tensor | None = None, **values: Tensor):
        self.scored = scored
        if advantage is not None:
            self.advantage = advantage
        for name, value in values.items():
            if name not in STATISTICS:
                raise ValueError(f"{name!r} is no statistic; they are {', '.join(STATISTICS)}")
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Tensor:
        """Reached for what is not there."""
        if name == "advantage":
            raise ValueError(
                "this loss weights tokens by advantages: pass advantages=..., one per label, to "
                "linear_loss or token_statistics (see group_advantages, sequence_weights)"
            )
        if name not in STATISTICS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        option = STATISTICS[name].option
        raise ValueError(
            f"the statistic {name!r} was not computed. Ask for what the loss needs with "
            f"request=loss.request, or in your own with StatisticsRequest({option}=...), given to "
            "token_statistics or linear_token_statistics; linear_loss reads loss.request"
        )

    def get(self, name: str) -> Tensor | None:
        """A statistic by its name, or None where it was not asked for."""
        return self.__dict__.get(name)

    def where_scored(self, values: Tensor) -> Tensor:
        """``values``, exactly 0 (and without gradient) where the label is -100."""
        return torch.where(self.scored, values, torch.zeros_like(values))


class EveryToken:
    """A loss that differs from cross-entropy on every scored token."""

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens on which this loss differs from cross-entropy."""
        return statistics.scored


def needs_calibration(loss: Any) -> bool:
    """Whether ``loss`` has a tau="auto" that has to be measured on the initial model first."""
    waits = hasattr(loss, "calibrated") and getattr(loss, "tau", None) == "auto"
    return bool(getattr(loss, "needs_calibration", waits))


def token_mean(total: Tensor, num_items: int | Tensor) -> Tensor:
    """``total / max(num_items, 1)``: no scored token anywhere gives 0 with a live graph, not NaN.

    Args:
        total: scalar, a sum over this call's scored tokens.
        num_items: scored tokens of the global batch; an int or a 0-dim tensor on any device.

    """
    if isinstance(num_items, Tensor):
        return total / num_items.to(device=total.device, dtype=total.dtype).clamp(min=1)
    return total / max(num_items, 1)


def reduce_tokens(values: Tensor, scored: Tensor, num_items: int | Tensor | None = None) -> Tensor:
    """Sum ``values`` at scored positions and divide by the global count.

    Args:
        values: ``[...]`` per-token loss values.
        scored: ``[...]`` bool, `TokenStatistics.scored`.
        num_items: scored tokens of the global batch; default: those in ``scored``.

    """
    total = torch.where(scored, values, torch.zeros_like(values)).sum()
    return token_mean(total, scored.sum() if num_items is None else num_items)
