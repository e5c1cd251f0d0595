"""EAFT, entropy-adaptive fine-tuning:  -sg((H_K / normaliser)^alpha) log p_y.

    H_K         entropy of p renormalised on its K most likely tokens, nats
    normaliser  log K, so that the weight lies in [0, 1]

Tokens of which the model is sure count little, right or wrong: a sure model and another label is
what the paper calls a confident conflict. Source: EAFT, arXiv:2601.02151 (K 20, alpha 1). The
releases differ: LLaMA-Factory divides by 3 (log 20 is 2.996), axolotl by nothing: ``normaliser``
of 3.0 and 1.0. Alpha 0 is cross-entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .inputs import check_not_negative, check_positive
from .request import EveryToken, StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class EntropyAdaptiveLoss(EveryToken):
    """Cross-entropy weighted by the model's own entropy, a constant.

    Args:
        alpha: exponent of the weight, >= 0.
        top_k: K >= 2.
        normaliser: > 0, nats; None: log K.

    """

    alpha: float = 1.0
    top_k: int = 20
    normaliser: float | None = None
    name: ClassVar[str] = "eaft"

    def __post_init__(self) -> None:
        check_not_negative("alpha", self.alpha)
        StatisticsRequest(top_k_entropy=self.top_k)
        if self.normaliser is not None:
            check_positive("normaliser", self.normaliser)

    @property
    def request(self) -> StatisticsRequest:
        """The entropy of the K most likely tokens."""
        return StatisticsRequest(top_k_entropy=self.top_k)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        normaliser = math.log(self.top_k) if self.normaliser is None else self.normaliser
        weight = (statistics.top_k_entropy.detach().clamp(min=0.0) / normaliser) ** self.alpha
        return -weight * statistics.log_prob
