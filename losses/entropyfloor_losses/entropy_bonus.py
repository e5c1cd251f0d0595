"""Entropy bonus:  -log p_y - lam * M * H,  with M = 1 everywhere, or SED's mask.

The classic regulariser. ``selective=True`` pays the bonus only where the model is uncertain: M is
1 where the top-k mass is below tau, detached, calibrated as in ``selective_entropy.py``. A
uniform bonus also feeds junk tokens at positions where only one continuation makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .request import StatisticsRequest, TokenStatistics
from .selective_entropy import (
    SelectiveEntropyLoss,
    calibrate_tau,
    check_lam,
    check_quantile,
    check_tau,
)


@dataclass(frozen=True)
class EntropyBonusLoss:
    """Cross-entropy minus lam times the Shannon entropy of the next-token distribution.

    Args:
        lam: weight of the bonus, >= 0.
        selective: pay it only where the top-k mass is below tau.
        top_k: k of that mass (selective only).
        tau: threshold in (0, 1], or "auto" (selective only).
        quantile: for tau="auto": the share of scored tokens selected when training starts.

    """

    lam: float = 0.1
    selective: bool = False
    top_k: int = 2
    tau: float | Literal["auto"] = "auto"
    quantile: float = 0.3
    name: ClassVar[str] = "entropy_bonus"

    def __post_init__(self) -> None:
        check_lam(self.lam)
        check_tau(self.tau)
        check_quantile(self.quantile)
        StatisticsRequest(top_k=self.top_k)

    @property
    def request(self) -> StatisticsRequest:
        """Entropy is always there; the selective variant needs the top-k mass at its own k."""
        return StatisticsRequest(top_k=self.top_k)

    def calibrated(self, top_k_mass: Tensor) -> EntropyBonusLoss:
        """The same loss with tau="auto" replaced by the quantile of ``top_k_mass`` ``[n]``."""
        if not self.selective or self.tau != "auto":
            return self
        return replace(self, tau=calibrate_tau(top_k_mass, self.quantile))

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        bonus = self.lam * statistics.entropy
        if self.selective:
            bonus = torch.where(self.selected(statistics), bonus, torch.zeros_like(bonus))
        return -statistics.log_prob - bonus

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens that get the bonus: every scored one, or SED's mask."""
        if not self.selective:
            return statistics.scored
        return SelectiveEntropyLoss(top_k=self.top_k, tau=self.tau).selected(statistics)
