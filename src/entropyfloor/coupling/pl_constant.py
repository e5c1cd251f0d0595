"""An estimate of the Polyak-Lojasiewicz constant along a trajectory.

    PL:         |grad L|^2 >= 2 mu (L - L*)          for every theta of a region
    estimate:   min over visited points of |grad L|^2 / (2 (L - L_best))

It is an estimate and not a bound: only visited points count, ``L_best`` stands for the unknown
``L*`` and is no smaller, and both make it too large. The best point itself says nothing (0/0). A
squared norm must be free of sampling noise, which only adds to it: see ``gradient_gram.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PLEstimate:
    """The estimate and where it comes from.

    Attributes:
        mu: the estimate; None where no visited point says anything.
        at: index of the point that gives it.
        points: how many points could be used.

    """

    mu: float | None
    at: int | None
    points: int


def estimate_pl(losses: Sequence[float], squared_norms: Sequence[float | None]) -> PLEstimate:
    """Estimate ``mu`` of an objective that is minimised; give the negative of a reward.

    Args:
        losses: at the points of the trajectory.
        squared_norms: ``|grad L|^2`` there; None, or not positive, where it is not known.

    """
    if len(losses) != len(squared_norms):
        raise ValueError(
            f"one squared gradient norm per loss is needed; got {len(squared_norms)} and "
            f"{len(losses)}"
        )
    best = min(losses, default=0.0)
    ratios = [
        (norm / (2.0 * (loss - best)), index)
        for index, (loss, norm) in enumerate(zip(losses, squared_norms, strict=True))
        if norm is not None and norm > 0.0 and loss > best
    ]
    if not ratios:
        return PLEstimate(None, None, 0)
    mu, index = min(ratios)
    return PLEstimate(mu, index, len(ratios))
