"""SED, selective entropy:  -log p_y + lam * M * (p_y - 1/2)^2,  M = 1[top-k mass < tau], detached.

    p_y  probability of the label          M  1 where the model is *un*certain
    tau  a number, or "auto": the ``quantile`` of the *initial* model's top-k mass, scored tokens

Source: SED-SFT, arXiv:2602.07464. Despite its name the penalty is not Shannon entropy. How we
depart: the release calibrates tau with top-10 mass over all positions, prompt included, and trains
with top-2; we calibrate with the k that trains, on scored tokens only. Its ratio 0.7 is our
``quantile=0.3``: about 30 % of the tokens fall below tau and are regularised when training starts.

What it does not do: for lam <= 1 it has no fixed point below p = 1, so it slows collapse and sets
no floor; the mask switches off exactly as the model becomes confident.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from .inputs import check_not_negative, check_number
from .request import StatisticsRequest, TokenStatistics

if TYPE_CHECKING:
    from typing import Self


def calibrate_tau(top_k_mass: Tensor, quantile: float) -> float:
    """The quantile of the initial model's top-k mass, as a tau in (0, 1].

    Args:
        top_k_mass: ``[n]`` top-k mass of the initial model at scored tokens, the k of training.
        quantile: share of these tokens that the mask shall select when training starts.

    """
    if top_k_mass.numel() == 0:
        raise ValueError(
            "tau cannot be calibrated: the sample has no scored token. Check the labels "
            "(all -100?), or pass tau as a number"
        )
    # numpy-style linear interpolation; torch.quantile refuses more than 16 million values.
    ordered = top_k_mass.flatten().double().sort().values
    position = quantile * (ordered.numel() - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return min(1.0, float(low + (high - low) * (position - math.floor(position))))


@dataclass(frozen=True)
class UncertainTokens:
    """What losses that act where the model is uncertain share: a weight, and the mask M."""

    lam: float = 1.0
    top_k: int = 2
    tau: float | Literal["auto"] = "auto"
    quantile: float = 0.3

    def __post_init__(self) -> None:
        check_not_negative("lam", self.lam)
        if self.tau != "auto":
            check_number("tau", self.tau, lambda v: 0 < v <= 1, '"auto" or a number in (0, 1]')
        check_number("quantile", self.quantile, lambda v: 0 < v < 1, "in (0, 1)")
        StatisticsRequest(top_k=self.top_k)

    @property
    def request(self) -> StatisticsRequest:
        """The top-k mass at the loss's own k."""
        return StatisticsRequest(top_k=self.top_k)

    @property
    def needs_calibration(self) -> bool:
        """Whether tau has to be measured on the initial model first."""
        return self.tau == "auto"

    def calibrated(self, top_k_mass: Tensor) -> Self:
        """The same loss with tau="auto" replaced by the quantile of ``top_k_mass`` ``[n]``."""
        if not self.needs_calibration:
            return self
        return replace(self, tau=calibrate_tau(top_k_mass, self.quantile))

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """The mask M: scored tokens whose top-k mass is below tau."""
        if isinstance(self.tau, str):
            raise ValueError(
                'tau is "auto" and has not been calibrated. SEDTrainer does it at the first step; '
                "in your own loop call loss = loss.calibrated(s.top_k_mass[s.scored]) with the "
                "initial model's statistics s, or pass tau as a number in (0, 1]"
            )
        return (statistics.top_k_mass < self.tau) & statistics.scored


@dataclass(frozen=True)
class SelectiveEntropyLoss(UncertainTokens):
    """Cross-entropy plus a push of p_y towards 1/2 where the model is uncertain.

    Args:
        lam: weight of the penalty, >= 0. The paper's release uses 1.0.
        top_k: k of the mass that decides what is uncertain.
        tau: threshold in (0, 1] on the top-k mass, or "auto" (see `calibrated`).
        quantile: for tau="auto": the share of scored tokens selected when training starts.

    """

    name: ClassVar[str] = "sed"

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        probability = statistics.log_prob.exp()
        penalty = self.lam * (probability - 0.5).square()
        mask = self.selected(statistics)
        return -statistics.log_prob + torch.where(mask, penalty, torch.zeros_like(penalty))
