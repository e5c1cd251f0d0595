"""What a measurement of the coupling found, as data that goes to JSON and back."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entropyfloor.coupling.alignment import GradientAlignment, LayerAlignment
from entropyfloor.coupling.duration_model import ModelFit
from entropyfloor.coupling.durations import Duration
from entropyfloor.coupling.gradient_gram import GradientAgreement
from entropyfloor.coupling.identity import Identity
from entropyfloor.coupling.pl_constant import PLEstimate
from entropyfloor.screening.records import plain, restore, write_strict_json
from entropyfloor.stats.intervals import Interval

SCHEMA = "entropyfloor.coupling"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CheckpointCoupling:
    """One checkpoint of the run; the first is the one that the run started from.

    Attributes:
        name: short, for tables.
        path: as given.
        step: of the run; the start is 0.
        sft_loss: nats per token of the held-out demonstrations.
        mean_reward: on the held-out prompts.
        loss_rise: ``sft_loss`` minus that of the start.
        reward_gain: ``mean_reward`` minus that of the start.
        kl: nats per token; absent for the start. ``forward_*`` is KL(p_sft || p_rl), ``reverse_*``
            KL(p_rl || p_sft); ``*_own`` along samples of the SFT model for the demonstrations'
            prompts, ``*_demonstrations`` along the demonstrations, ``*_rollouts`` along rollouts of
            the RL model for the prompts.
        identity: rise in SFT loss against the KL, nats per answer; None for the start.
        alignment: of the SFT and the RL gradient; None if it was not asked for.
        intervals: 95 % by name of a measure (``forward_own`` for a KL).
        notes: what else to know.
        runtime_s: seconds, without what an earlier run had measured.

    """

    name: str
    path: str
    step: float
    sft_loss: float
    mean_reward: float
    loss_rise: float
    reward_gain: float
    kl: dict[str, float] = field(default_factory=dict)
    identity: Identity | None = None
    alignment: GradientAlignment | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    runtime_s: float = 0.0

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "CheckpointCoupling":
        """Undo ``dataclasses.asdict``."""
        return cls(
            **{
                **document,
                "identity": _identity(document["identity"]),
                "alignment": alignment_from_dict(document["alignment"]),
                "intervals": _intervals(document["intervals"]),
                "notes": tuple(document["notes"]),
            }
        )


@dataclass(frozen=True)
class DurationAnswer:
    """One question about the run's length, answered by measurement, by the model and by PL.

    Attributes:
        question: ``best`` (greatest reward - weight * loss rise) or ``threshold`` (weight 1).
        weight: reward per nat per token.
        measured: among the steps that were measured.
        modelled: by the model fitted to the curves; None where it does not apply.
        by_pl: step by the PL constants; None where they are not known, or beyond the run.
        words: how the answers compare.

    """

    question: str
    weight: float
    measured: Duration
    modelled: Duration | None
    by_pl: float | None
    words: str


@dataclass(frozen=True)
class CouplingReport:
    """The curves of one run and what follows from them.

    Attributes:
        checkpoints: the start, then the run's, by step.
        order: ``sft-rl`` (RL after SFT) or ``rl-sft``.
        durations: best step and threshold.
        pl: ``sft_loss`` and ``reward``: estimates along the run.
        fit: constants of the duration model; None where it does not apply.
        settings: everything that determines the numbers.

    """

    checkpoints: tuple[CheckpointCoupling, ...]
    order: str
    durations: tuple[DurationAnswer, ...]
    pl: dict[str, PLEstimate]
    fit: ModelFit | None
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the document for JSON: ``schema``, ``schema_version``, then the fields."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **plain(asdict(self))}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "CouplingReport":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: a document of another schema or version.

        """
        found = (document.get("schema"), document.get("schema_version"))
        if found != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(
                f"expected a document of schema {SCHEMA!r}, version {SCHEMA_VERSION}; got "
                f"{found[0]!r}, version {found[1]!r}"
            )
        return cls(
            tuple(map(CheckpointCoupling.from_dict, document["checkpoints"])),
            document["order"],
            tuple(map(_answer, document["durations"])),
            {name: restore(PLEstimate, value) for name, value in document["pl"].items()},
            restore(ModelFit, document["fit"]),
            document["settings"],
        )

    def write_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as strict JSON; missing parent directories are made."""
        return write_strict_json(self.to_dict(), path)


def alignment_from_dict(document: dict[str, Any] | None) -> GradientAlignment | None:
    """Undo ``dataclasses.asdict`` of a :class:`GradientAlignment`."""
    if document is None:
        return None
    return GradientAlignment(
        document["parameters"],
        document["rank"],
        _layer(document["whole"]),
        tuple(map(_layer, document["layers"])),
    )


def _layer(document: dict[str, Any]) -> LayerAlignment:
    agreement = document["agreement"]
    found = GradientAgreement(**{**agreement, "interval": _interval(agreement["interval"])})
    return LayerAlignment(**{**document, "agreement": found})


def _identity(document: dict[str, Any] | None) -> Identity | None:
    if document is None:
        return None
    return Identity(**{**document, "intervals": _intervals(document["intervals"])})


def _answer(document: dict[str, Any]) -> DurationAnswer:
    return DurationAnswer(
        **{
            **document,
            "measured": _duration(document["measured"]),
            "modelled": _duration(document["modelled"]) if document["modelled"] else None,
        }
    )


def _duration(document: dict[str, Any]) -> Duration:
    return Duration(**{**document, "interval": _interval(document["interval"])})


def _interval(ends: Any) -> Interval | None:
    return None if ends is None else Interval(*ends)


def _intervals(document: dict[str, Any]) -> dict[str, Interval]:
    return {name: Interval(*ends) for name, ends in document.items()}
