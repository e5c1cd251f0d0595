"""Cross-entropy with label smoothing:  -(1 - eps) log p_y - eps * mean_v log p_v.

eps = 0 is the negative log-likelihood. Smoothing (Szegedy et al., arXiv:1512.00567, section 7) is
kept as the control of arXiv:2606.18487: it raises entropy and does not rescue the RL that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_number
from .request import StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Negative log-likelihood, optionally label-smoothed.

    Args:
        smoothing: eps in [0, 1); the mass spread evenly over the vocabulary.

    """

    smoothing: float = 0.0
    name: ClassVar[str] = "ce"

    def __post_init__(self) -> None:
        check_number("smoothing", self.smoothing, lambda v: 0 <= v < 1, "in [0, 1)")

    @property
    def request(self) -> StatisticsRequest:
        """Label smoothing needs the mean log-probability, plain cross-entropy nothing extra."""
        return StatisticsRequest(mean_log_prob=self.smoothing > 0)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        if self.smoothing == 0.0:
            return -statistics.log_prob
        return (
            -(1 - self.smoothing) * statistics.log_prob - self.smoothing * statistics.mean_log_prob
        )

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens on which this loss differs from cross-entropy: all if smoothed, else none."""
        return statistics.scored if self.smoothing > 0 else torch.zeros_like(statistics.scored)
