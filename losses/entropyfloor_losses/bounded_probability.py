"""Bounded inverse probability (DCR):  -C log p_y,  C = sg(p_y) where p_y < tau, else 1.

The gradient of log p_y carries a factor 1/p_y; C takes it back where the model gives the label
little, so that single unlikely tokens do not dominate an update. Source: GFT, arXiv:2604.14258,
section DCR (Figure 6 peaks near tau = 0.7, our default; the released function defaults to 0.5 and
its example script passes 0.1). DFT (arXiv:2508.05629) weights every token: the limit tau > 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_number
from .request import StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class BoundedProbabilityLoss:
    """Cross-entropy with the inverse-probability factor removed below tau.

    Args:
        tau: threshold on p_y in [0, inf]. 0 is plain cross-entropy, anything above 1 is DFT.

    """

    tau: float = 0.7
    name: ClassVar[str] = "dcr"
    request: ClassVar[StatisticsRequest] = StatisticsRequest()

    def __post_init__(self) -> None:
        check_number("tau", self.tau, lambda v: v >= 0, ">= 0 (0 is CE, above 1 is DFT)")

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        probability = statistics.log_prob.detach().exp()
        weight = torch.where(probability < self.tau, probability, torch.ones_like(probability))
        return -weight * statistics.log_prob

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Rectified tokens: scored, with p_y below tau."""
        return (statistics.log_prob.detach().exp() < self.tau) & statistics.scored
