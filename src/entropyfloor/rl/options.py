"""Which prompts the calibration band keeps, and how a run's log is judged; no torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from entropyfloor.rollouts.options import described, flag
from entropyfloor.screening.options import TAU_H, check_tau_h
from entropyfloor.stats.groups import check_success_threshold, p_star


@described
@dataclass(frozen=True)
class BandOptions:
    """Edges of the band in passes; see ``entropyfloor.rl.band.band_edges``.

    Raises:
        ValueError: a threshold that no reward can be compared with.

    """

    _argument_group_name: ClassVar[str] = "band"
    lowest: int | None = flag(None, "fewest passes to keep (default: 1 of 16)")
    highest: int | None = flag(None, "most passes to keep (default: 14 of 16)")
    success_threshold: float = flag(1.0, "a rollout passes if its reward is at least this")

    def __post_init__(self) -> None:
        check_success_threshold(self.success_threshold)


@described
@dataclass(frozen=True)
class DiagnoseOptions:
    """How the log of a run is read and judged; see ``entropyfloor.rl.diagnose``.

    Raises:
        ValueError: a temperature that is missing, or no temperature.

    """

    _argument_group_name: ClassVar[str] = "the run"
    temperature: float | None = flag(None, "what the run sampled at (needed)")
    format: Literal["trl", "verl", "csv", "tensorboard"] | None = flag(
        None, "of the log (default: told by its name)"
    )
    step: str | None = flag(None, "column of the step in a CSV file", metavar="COLUMN")
    entropy: str | None = flag(
        None, "column of the mean token entropy (default: those that are known)", metavar="COLUMN"
    )
    entropy_unit: Literal["nats", "bits"] = flag("nats", "what it is in")
    degenerate: str | None = flag(
        None, "column of the share of groups whose rewards agree", metavar="COLUMN"
    )
    pass_rate: str | None = flag(
        None,
        "column of the share of rollouts that pass, such as a mean reward that is 0 or 1",
        metavar="COLUMN",
    )
    group_size: int | None = flag(None, "rollouts per prompt, for p̂/p*")
    max_steps: int | None = flag(None, "length of the run (default: what the log says)")
    early_step: int | None = flag(None, "first step compared (default: 10 of 400, scaled)")
    late_step: int | None = flag(None, "second step compared (default: 150 of 400, scaled)")
    tau_2: float = flag(0.5, "relative entropy drop that is a collapse")
    window: int = flag(1, "steps averaged for each of the two")
    tau_h: float = flag(TAU_H, "entropies below this at the early step are low, nats")

    def __post_init__(self) -> None:
        if self.temperature is None:
            raise ValueError(
                "--temperature is missing: entropies in a log are those of the distribution that "
                "the run sampled from, and mean something else at another temperature; give what "
                "the run sampled at (1.0 in trl and verl unless it was set)"
            )
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite; got {self.temperature}")
        check_tau_h(self.tau_h)
        if self.group_size is not None:
            p_star(self.group_size)  # raises for an impossible group size
