"""Where entropy is spent: per-token terms that are added to a loss, and the sum of both.

    anchor           KL(b || p)      towards all that the base model b found plausible
    reverse_anchor   KL(p || b)      away from what the base model found implausible
    onset_anchor     KL(o || p)      towards the model o as it was when entropy came near the floor
    uniform          -H              Shannon entropy, every token
    hinge            max(h - H, 0)   only where a token's entropy is below h
    selective        -M H            M = 1[top-k mass < tau], SED's mask, detached
    support          -H_K            entropy within the k most likely tokens

`PenalisedLoss` is ``loss + weight * term``; a controller moves the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .statistics import StatisticsRequest, TokenStatistics, check_positive

Place = Literal[
    "anchor", "reverse_anchor", "onset_anchor", "uniform", "hinge", "selective", "support"
]
PLACES: tuple[str, ...] = get_args(Place)


@dataclass(frozen=True)
class EntropyTerm:
    """A term to be minimised, ``[n]`` from `TokenStatistics`; differentiable.

    Args:
        place: see the table at the top of this file.
        hinge: entropy in nats below which a token is pushed up (place "hinge").
        tau: top-k mass below which a token counts as uncertain, in (0, 1] (place "selective").
        support_k: tokens of the support (place "support").

    """

    place: Place = "anchor"
    hinge: float = 0.5
    tau: float = 0.9
    support_k: int = 4

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place is {self.place!r}; choose one of {', '.join(PLACES)}")
        check_positive("hinge", self.hinge)
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"tau is {self.tau!r}; it must be in (0, 1]")
        StatisticsRequest(support_k=self.support_k)

    @property
    def needs_base(self) -> bool:
        """Whether the term compares with another model: the base, or the one of the onset."""
        return self.place in ("anchor", "reverse_anchor", "onset_anchor")

    def extend(self, request: StatisticsRequest) -> StatisticsRequest:
        """``request`` and what this term needs; the top-k mass stays at the loss's own k."""
        if self.place == "support":
            return replace(request, support_k=self.support_k)
        if self.needs_base:
            reverse = self.place == "reverse_anchor"
            return replace(request, base_kl="reverse" if reverse else "forward")
        return request

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token values in nats, 0 where ignored."""
        if self.needs_base:
            assert statistics.base_kl is not None
            return statistics.base_kl
        if self.place == "support":
            assert statistics.support_entropy is not None
            return -statistics.support_entropy
        if self.place == "hinge":
            return statistics.where_scored(torch.relu(self.hinge - statistics.entropy))
        acting = self.acts_on(statistics)
        return -torch.where(acting, statistics.entropy, torch.zeros_like(statistics.entropy))

    def acts_on(self, statistics: TokenStatistics) -> Tensor:
        """Tokens on which the term has a gradient, bool."""
        if self.place == "hinge":
            return statistics.scored & (statistics.entropy < self.hinge)
        if self.place == "selective":
            return statistics.scored & (statistics.top_k_mass < self.tau)
        return statistics.scored


@dataclass
class PenalisedLoss:
    """``loss + weight * term``, token by token.

    Args:
        loss: an object of this package or any callable on `TokenStatistics`.
        term: what is added.
        weight: >= 0; may be assigned between steps.

    """

    loss: Callable[[TokenStatistics], Tensor]
    term: EntropyTerm
    weight: float = 0.0

    @property
    def request(self) -> StatisticsRequest:
        """What both need; without weight only what the loss needs."""
        own = getattr(self.loss, "request", None) or StatisticsRequest()
        return self.term.extend(own) if self.weight > 0 else own

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss, 0 where ignored. Differentiable."""
        values = self.loss(statistics)
        return values + self.weight * self.term(statistics) if self.weight > 0 else values

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens treated otherwise than cross-entropy would."""
        own = getattr(self.loss, "selected", None)
        chosen = statistics.scored if own is None else own(statistics)
        return chosen | self.term.acts_on(statistics) if self.weight > 0 else chosen
