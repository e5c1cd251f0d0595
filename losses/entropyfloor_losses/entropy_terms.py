"""Where entropy is spent: per-token terms that are added to a loss, and the sum of both.

    anchor         KL(b || p)   towards all that the base model b found plausible
    onset_anchor   KL(o || p)   towards the model o as it was when entropy came near the floor
    uniform        -H           Shannon entropy, every token

`PenalisedLoss` is ``loss + weight * term``; a controller moves the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from .request import StatisticsRequest, TokenStatistics

Place = Literal["anchor", "onset_anchor", "uniform"]
PLACES: tuple[str, ...] = get_args(Place)
"""Where an `EntropyTerm` can spend its entropy."""


@dataclass(frozen=True)
class EntropyTerm:
    """A term to be minimised, ``[n]`` from `TokenStatistics`; differentiable.

    Args:
        place: see the table at the top of this file.

    """

    place: Place = "anchor"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place is {self.place!r}; choose one of {', '.join(PLACES)}")

    @property
    def needs_reference(self) -> bool:
        """Whether the term compares with another model: the base, or the one of the onset."""
        return self.place != "uniform"

    def extend(self, request: StatisticsRequest) -> StatisticsRequest:
        """``request`` and what this term needs; the top-k mass stays at the loss's own k."""
        return request.including(reference_kl=True) if self.needs_reference else request

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token values in nats, 0 where ignored."""
        return statistics.reference_kl if self.needs_reference else -statistics.entropy


@dataclass
class PenalisedLoss:
    """``loss + weight * term``, token by token.

    Args:
        loss: an object of this package or any callable on `TokenStatistics`.
        term: what is added.
        weight: at least 0; may be assigned between steps.

    """

    loss: Callable[[TokenStatistics], Tensor]
    term: EntropyTerm
    weight: float = 0.0

    @property
    def request(self) -> StatisticsRequest:
        """What both need; without weight only what the loss needs."""
        request = getattr(self.loss, "request", None) or StatisticsRequest()
        return self.term.extend(request) if self.weight > 0 else request

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss, 0 where ignored. Differentiable."""
        values = self.loss(statistics)
        return values + self.weight * self.term(statistics) if self.weight > 0 else values

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens treated otherwise than cross-entropy would; the term treats all of them so."""
        of_loss = getattr(self.loss, "selected", None)
        return statistics.scored if self.weight > 0 or of_loss is None else of_loss(statistics)
