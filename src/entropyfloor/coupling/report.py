"""The result of a measurement of the coupling: data that goes to JSON and back."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entropyfloor.coupling.alignment import GradientAlignment
from entropyfloor.coupling.divergence import Identity
from entropyfloor.coupling.durations import Duration, ModelFit, PLEstimate
from entropyfloor.io import plain, restore, save_json
from entropyfloor.stats.intervals import Interval

SCHEMA = "entropyfloor.coupling"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CheckpointCoupling:
    """One checkpoint of the run; the first is the one that the run started from."""

    name: str  # short, for tables
    path: str  # as given
    step: float  # of the run; the start is 0
    sft_loss: float  # nats per token of the held-out demonstrations
    mean_reward: float  # on the held-out prompts
    loss_rise: float  # sft_loss minus that of the start
    reward_gain: float  # mean_reward minus that of the start
    # Nats per token; absent for the start. forward_* is KL(p_sft || p_rl), reverse_* KL(p_rl ||
    # p_sft); *_own along samples of the SFT model for the demonstrations' prompts, *_demonstrations
    # along the demonstrations, *_rollouts along rollouts of the RL model for the prompts.
    kl: dict[str, float] = field(default_factory=dict)
    # Rise in SFT loss against the KL, nats per answer; None for the start
    identity: Identity | None = None
    # Of the SFT and the RL gradient; None if it was not asked for
    alignment: GradientAlignment | None = None
    # 95 % by name of a measure (forward_own for a KL)
    intervals: dict[str, Interval] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what else to know
    runtime_s: float = 0.0  # seconds, without what an earlier run had measured


@dataclass(frozen=True)
class DurationAnswer:
    """One question about the run's length, answered by measurement, by the model and by PL."""

    question: str  # best (greatest reward - weight * loss rise) or threshold (weight 1)
    weight: float  # reward per nat per token
    measured: Duration  # among the steps that were measured
    modelled: Duration | None  # by the model fitted to the curves; None where it does not apply
    # Step by the PL constants; None where they are not known, or beyond the run
    by_pl: float | None
    words: str  # how the answers compare


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

    @property
    def step_unit(self) -> str:
        """``step``, or ``checkpoint`` where the run's names hold no steps."""
        return str(self.settings.get("step_unit", "step"))

    @property
    def stage(self) -> str:
        """The order in words: ``RL after SFT``."""
        return {"sft-rl": "RL after SFT", "rl-sft": "SFT after RL"}[self.order]

    @property
    def aligned(self) -> list[CheckpointCoupling]:
        """The checkpoints whose gradients were compared."""
        return [c for c in self.checkpoints if c.alignment is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the document for JSON: ``schema``, ``schema_version``, then the fields."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **plain(asdict(self))}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "CouplingReport":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: a document of another schema or version.

        """
        fields = dict(document)
        schema, version = fields.pop("schema", None), fields.pop("schema_version", None)
        if (schema, version) != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(
                f"expected a document of schema {SCHEMA!r}, version {SCHEMA_VERSION}; got "
                f"{schema!r}, version {version!r}"
            )
        report: CouplingReport = restore(cls, fields)
        return report

    def write_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as strict JSON; missing parent directories are made."""
        save_json(Path(path), self.to_dict())
        return Path(path)
