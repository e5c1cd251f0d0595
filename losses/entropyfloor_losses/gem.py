"""GEM with linear h:  -log p_y + sum_v q_v log p_v,  q = sg(softmax(z / beta)).

The gradient with respect to the logits is q - e_y: the label pulls, and instead of p the sharper
q (beta < 1) pushes, so that mass is taken from tokens the model already prefers and the tail
survives. Source: GEM, arXiv:2408.16673 (beta 0.7). At beta = 1 the gradient is cross-entropy's,
the value is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .inputs import check_positive
from .request import EveryToken, StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class GEMLoss(EveryToken):
    """GEM, game-theoretic entropy maximisation, linear h.

    Args:
        beta: temperature of q, > 0; below 1 preserves diversity.

    """

    beta: float = 0.7
    name: ClassVar[str] = "gem"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    @property
    def request(self) -> StatisticsRequest:
        """GEM needs sum q log p at its beta."""
        return StatisticsRequest(gem_beta=self.beta)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        return statistics.tempered_log_prob - statistics.log_prob
