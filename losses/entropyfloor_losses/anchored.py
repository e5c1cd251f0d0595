"""ASFT, anchored supervised fine-tuning:  -sg(p_y) log p_y + lam KL(b || p).

    b   the model that training starts from

DFT's weighting, kept near the base model, from which DFT alone drifts. Source: ASFT,
arXiv:2509.23753 (lam 0.05; the first release's script has 0.1). The release's KL is the same
direction, over the vocabulary; our entropy floor with ``floor_place="anchor"`` adds the same term
with a weight that a controller moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .inputs import check_not_negative
from .request import EveryToken, StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class AnchoredLoss(EveryToken):
    """DFT plus a KL to the base model.

    Args:
        lam: weight of the KL, >= 0; 0 is DFT.

    """

    lam: float = 0.05
    name: ClassVar[str] = "asft"
    reference: ClassVar[str] = "initial"
    request: ClassVar[StatisticsRequest] = StatisticsRequest(reference_kl=True)

    def __post_init__(self) -> None:
        check_not_negative("lam", self.lam)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        weight = statistics.log_prob.detach().exp()
        return -weight * statistics.log_prob + self.lam * statistics.reference_kl
