"""Entropy bonus:  -log p_y - lam * M * H,  with M = 1 everywhere, or SED's mask.

The classic regulariser. ``selective=True`` pays the bonus only where the model is uncertain: M is
1 where the top-k mass is below tau, detached, calibrated as in ``selective_entropy.py``. A
uniform bonus also feeds junk tokens at positions where only one continuation makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .request import TokenStatistics
from .selective_entropy import UncertainTokens


@dataclass(frozen=True)
class EntropyBonusLoss(UncertainTokens):
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
    name: ClassVar[str] = "entropy_bonus"

    @property
    def needs_calibration(self) -> bool:
        """Whether tau has to be measured on the initial model first."""
        return self.selective and super().needs_calibration

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        bonus = self.lam * statistics.entropy
        if self.selective:
            bonus = torch.where(self.selected(statistics), bonus, torch.zeros_like(bonus))
        return -statistics.log_prob - bonus

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens that get the bonus: every scored one, or SED's mask."""
        return super().selected(statistics) if self.selective else statistics.scored
