"""DEFT, dynamic entropy fine-tuning:  (1 - p_y^a) / a,  a = sg(sum_v p_v^2).

    a   collision probability, exp of minus the Renyi-2 entropy, in [1/V, 1]

`PowerLoss` whose exponent is the model's own certainty: cross-entropy where it is unsure, 1 - p_y
where it is sure. The gradient is sg(p_y^a) times cross-entropy's. Source: DEFT, arXiv:2602.11424;
the release adds 1e-6 to the divisor, which a >= 1/V does not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .power import deformed_log_loss
from .request import EveryToken, StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class DynamicEntropyLoss(EveryToken):
    """The deformed logarithm with the collision probability as its exponent."""

    name: ClassVar[str] = "deft"
    request: ClassVar[StatisticsRequest] = StatisticsRequest(collision_prob=True)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss, in the statistics' shape; 0 where ignored. Differentiable."""
        # Ignored tokens have a = 0.
        exponent = statistics.collision_prob.detach().masked_fill(~statistics.scored, 1.0)
        return deformed_log_loss(statistics.log_prob, exponent)
