"""GIFT, Gibbs initialisation with finite temperature:  KL(t || p),  t_v ~ b_v exp(beta 1[v = y]).

    b   the model that training starts from          Z = 1 + (e^beta - 1) b_y

The target t keeps the base model's taste and raises the label's odds by e^beta. In statistics,

    KL(t || p) = [KL(b || p) - (e^beta - 1) b_y (log p_y - log b_y)] / Z + beta t_y - log Z

with t_y = e^beta b_y / Z; its gradient is p - t. Source: GIFT, arXiv:2601.09233, beta 20 as
released. There t_y is above 0.99 wherever b_y > 2.1e-7: nearly cross-entropy, which it is for beta
to infinity. At beta 0 it is KL(b || p). The release computes the cross-entropy with t, which
differs by the entropy of t, a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_not_negative
from .request import EveryToken, StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class GibbsLoss(EveryToken):
    """KL from the base model, tilted towards the label, to the model.

    Args:
        beta: inverse temperature, >= 0: log-odds that the label gains over the base model's.

    """

    beta: float = 20.0
    name: ClassVar[str] = "gift"
    reference: ClassVar[str] = "initial"
    request: ClassVar[StatisticsRequest] = StatisticsRequest(
        reference_kl=True, reference_log_prob=True
    )

    def __post_init__(self) -> None:
        check_not_negative("beta", self.beta)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        log_b, log_p = statistics.reference_log_prob, statistics.log_prob
        # Of the label's odds under b; log Z without forming e^beta.
        log_rest = torch.log1p(-log_b.exp().clamp(max=1.0))
        log_z = torch.logaddexp(log_rest, self.beta + log_b)
        target = (self.beta + log_b - log_z).exp()
        of_label = (target - (log_b - log_z).exp()) * (log_b - log_p)
        value = statistics.reference_kl * (-log_z).exp() + of_label + self.beta * target - log_z
        return statistics.where_scored(value)
