"""Losses by name."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

from .anchored import AnchoredLoss
from .bounded_probability import BoundedProbabilityLoss
from .coverage import CoverageLoss
from .cross_entropy import CrossEntropyLoss
from .dynamic_entropy import DynamicEntropyLoss
from .entropy_adaptive import EntropyAdaptiveLoss
from .entropy_bonus import EntropyBonusLoss
from .gem import GEMLoss
from .gibbs import GibbsLoss
from .power import PowerLoss
from .proximal import ProximalLoss
from .selective_entropy import SelectiveEntropyLoss
from .tail import TailLoss


@dataclass(frozen=True)
class _Entry:
    """A name: the class behind it and the arguments that the name itself fixes."""

    loss_class: Any
    fixed: dict[str, Any]


_LOSSES: dict[str, _Entry] = {
    "ce": _Entry(CrossEntropyLoss, {}),
    "sed": _Entry(SelectiveEntropyLoss, {}),
    "dcr": _Entry(BoundedProbabilityLoss, {}),
    "dft": _Entry(BoundedProbabilityLoss, {"tau": float("inf")}),
    "gem": _Entry(GEMLoss, {}),
    "entropy_bonus": _Entry(EntropyBonusLoss, {"selective": False}),
    "selective_entropy_bonus": _Entry(EntropyBonusLoss, {"selective": True}),
    "eaft": _Entry(EntropyAdaptiveLoss, {}),
    "power": _Entry(PowerLoss, {}),
    "deft": _Entry(DynamicEntropyLoss, {}),
    "gift": _Entry(GibbsLoss, {}),
    "asft": _Entry(AnchoredLoss, {}),
    "psft": _Entry(ProximalLoss, {}),
    "dco": _Entry(CoverageLoss, {}),
    "tail": _Entry(TailLoss, {}),
}

LOSS_NAMES = tuple(_LOSSES)
"""The names that `loss_by_name` knows."""


def loss_options(name: str) -> dict[str, Any]:
    """Options of a loss and their defaults (``dataclasses.MISSING`` where there is none)."""
    entry = _entry(name)
    unused = set() if name != "entropy_bonus" else {"top_k", "tau", "quantile"}
    return {
        f.name: MISSING if f.default is MISSING else f.default
        for f in fields(entry.loss_class)
        if f.name not in entry.fixed and f.name not in unused
    }


def loss_by_name(name: str, **options: Any) -> Any:
    """Build a loss from its name: ``loss_by_name("sed", lam=1.0, tau=0.9)``.

    Raises:
        ValueError: an unknown name, an option the loss does not have, or a value out of range.

    """
    known = loss_options(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        takes = ", ".join(known) if known else "no options"
        raise ValueError(
            f"loss {name!r} does not take {', '.join(map(repr, unknown))}; it takes {takes}"
        )
    entry = _entry(name)
    return partial(entry.loss_class, **entry.fixed)(**options)


def loss_name_and_options(loss: Any) -> tuple[str, dict[str, Any]]:
    """The inverse of `loss_by_name`: ``loss_by_name(name, **options) == loss``.

    Raises:
        ValueError: not one of this package's losses.

    """
    for name, entry in _LOSSES.items():
        if type(loss) is not entry.loss_class:
            continue
        if all(getattr(loss, option) == value for option, value in entry.fixed.items()):
            # DCR with tau above 1 weights as DFT does, but only tau=inf is the name "dft".
            if name == "dcr" and loss.tau == float("inf"):
                continue
            return name, {option: getattr(loss, option) for option in loss_options(name)}
    raise ValueError(
        f"{type(loss).__name__} is not one of {', '.join(LOSS_NAMES)}; pass your own losses to "
        "SEDTrainer(loss=...)"
    )


def _entry(name: str) -> _Entry:
    if name not in _LOSSES:
        raise ValueError(
            f"unknown loss {name!r}; choose one of {', '.join(LOSS_NAMES)}, or pass a loss object"
        )
    return _LOSSES[name]
