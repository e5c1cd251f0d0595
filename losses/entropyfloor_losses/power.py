"""Power:  (1 - p_y^alpha) / alpha, the deformed logarithm -log_q p_y with q = 1 - alpha.

The gradient is p_y^alpha times cross-entropy's: unlikely labels pull little. Alpha 0 is
cross-entropy, 1 is 1 - p_y, large alpha looks at labels that are likely already. Source:
arXiv:2510.00526, f_alpha(p) = (1 - p^alpha) / alpha, which its release calls GeneralFamily (and
-p^10 in prose); -p^alpha without the division is the same up to the factor alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_not_negative
from .request import EveryToken, StatisticsRequest, TokenStatistics


def deformed_log_loss(log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    """``(1 - p^alpha) / alpha``, exact for small alpha; alpha > 0."""
    return -torch.expm1(alpha * log_prob) / alpha


@dataclass(frozen=True)
class PowerLoss(EveryToken):
    """A power of the label's probability.

    Args:
        alpha: >= 0; 0 is cross-entropy, 1 the paper's -p.

    """

    alpha: float = 1.0
    name: ClassVar[str] = "power"
    request: ClassVar[StatisticsRequest] = StatisticsRequest()

    def __post_init__(self) -> None:
        check_not_negative("alpha", self.alpha)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss, in the statistics' shape; 0 where ignored. Differentiable."""
        if self.alpha == 0:
            return -statistics.log_prob
        return deformed_log_loss(statistics.log_prob, self.alpha)
