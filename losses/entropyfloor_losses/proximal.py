"""PSFT, proximal supervised fine-tuning:  -min(r, 1 + epsilon_high),  r = p_y / o_y.

    o   the model in training as it was up to ``refresh_steps`` optimizer steps ago

PPO's clipped objective with advantage 1 for every label: a token stops pulling once its
probability has grown by the factor 1 + epsilon_high since the last refresh. At a refresh r = 1 and
the gradient is cross-entropy's. Source: PSFT, arXiv:2508.17784, clip (0.2, 0.28). With advantage 1
the lower clip never binds, min(r, clip(r, 0.8, 1.28)) = min(r, 1.28), so it is no option here. The
release takes 8 steps of 32 sequences between refreshes; ours counts steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .inputs import check_count, check_positive
from .request import StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class ProximalLoss:
    """The clipped probability ratio to an earlier snapshot of the model.

    Args:
        epsilon_high: > 0; growth of a label's probability, per refresh, beyond which it is
            clipped.
        refresh_steps: optimizer steps between snapshots, >= 1; read by the trainer.

    """

    epsilon_high: float = 0.28
    refresh_steps: int = 8
    name: ClassVar[str] = "psft"
    reference: ClassVar[str] = "snapshot"
    request: ClassVar[StatisticsRequest] = StatisticsRequest(reference_log_prob=True)

    def __post_init__(self) -> None:
        check_positive("epsilon_high", self.epsilon_high)
        check_count("refresh_steps", self.refresh_steps, least=1)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss, in the statistics' shape; 0 where ignored. Differentiable."""
        return statistics.where_scored(-_ratio(statistics).clamp(max=1 + self.epsilon_high))

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Clipped tokens: they send no gradient."""
        return (_ratio(statistics) > 1 + self.epsilon_high) & statistics.scored


def _ratio(statistics: TokenStatistics) -> Tensor:
    return (statistics.log_prob - statistics.reference_log_prob).exp()
