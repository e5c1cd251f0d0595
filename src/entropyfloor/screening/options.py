"""What the screening of checkpoints is judged by, and what a rescue is told; no torch here."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from entropyfloor.rollouts.options import Loading, Output, Sampling, arranged, described, flag
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.stats.groups import check_success_threshold, p_star

TAU_H = 0.18  # nats; see ``entropyfloor.screening.verdict``


def check_tau_h(tau_h: float) -> None:
    """Raise ValueError unless the threshold is a finite number of nats, zero or more."""
    if not (math.isfinite(tau_h) and tau_h >= 0.0):
        raise ValueError(f"tau_h is an entropy in nats, 0 or more, such as {TAU_H}; got {tau_h}")


@dataclass(frozen=True)
class Gate:
    """One limit that every checkpoint must keep."""

    flag: str  # min_pass_at, min_coverage or max_degenerate
    limit: float  # in [0, 1]
    k: int | None = None  # of min_pass_at; None of the others

    def __post_init__(self) -> None:
        if not 0.0 <= self.limit <= 1.0:
            raise ValueError(f"--{self.flag} is a share between 0 and 1; got {self.limit}")

    @classmethod
    def pass_at(cls, words: str) -> "Gate":
        """Read ``16:0.6``."""
        k, _, share = words.partition(":")
        try:
            gate = cls("min_pass_at", float(share), int(k))
        except ValueError as error:
            raise ValueError(
                f"--min_pass_at is K:SHARE, such as 16:0.6 for pass@16 of at least 0.6; got {words}"
            ) from error
        return gate

    @property
    def is_upper(self) -> bool:
        """Whether the limit is the greatest value allowed."""
        return self.flag == "max_degenerate"

    @property
    def metric(self) -> str:
        """The name of what is limited."""
        others = {"min_coverage": "coverage", "max_degenerate": "degenerate_fraction"}
        return others.get(self.flag, f"pass_at_{self.k}")

    def __str__(self) -> str:
        return f"{self.flag} {self.limit if self.k is None else f'{self.k}:{self.limit}'}"


@described
@dataclass(frozen=True)
class Judging:
    """What is computed from the rollouts, beside how they were drawn.

    Raises:
        ValueError: an impossible group size, threshold or gate.

    """

    _argument_group_name: ClassVar[str] = "verdict"
    group_size: int = flag(8, "rollouts per prompt that RL will use")
    tau_h: float = flag(TAU_H, "mean entropies below this are low, nats")
    ks: list[int] | None = flag(None, "pass@k to report (default: 1 2 4 ... num_samples)")
    success_threshold: float = flag(1.0, "a rollout passes if its reward is at least this")
    greedy: bool = flag(True, "one greedy rollout per prompt too, for greedy pass@1")
    until_decided: bool = flag(
        False,
        "stop drawing from a checkpoint once its entropy is decided to lie above or below tau_h",
    )
    held_out: PromptSet | str | None = flag(
        None,
        "rows with prompt and completion, for the held-out loss (default: the prompts, if all have "
        "a completion)",
        metavar="SPEC",
    )
    base: Path | str | None = flag(
        None,
        "measure the KL to this model, on rollouts and held-out completions; it stays in memory",
        metavar="CKPT",
    )
    compare_to: Path | str | None = flag(
        None,
        "the checkpoint that the others are compared with, prompt by prompt (default: the first)",
        metavar="CKPT",
    )
    trained_on: Path | str | None = flag(
        None,
        "rows that the checkpoints were trained on: prompts that are among them, exactly or "
        "nearly, are said (see `entropyfloor overlap`)",
        metavar="SPEC",
    )
    min_pass_at: list[str] = flag(
        [],
        "gate: pass@K of every checkpoint must be at least SHARE, as 16:0.6; any number of them",
        action="extend",
        metavar="K:SHARE",
    )
    min_coverage: float | None = flag(
        None,
        "gate: of the prompts that the checkpoint of compare_to solves, the others must solve at "
        "least this share",
        metavar="SHARE",
    )
    max_degenerate: float | None = flag(
        None, "gate: at most this share of groups may be degenerate", metavar="SHARE"
    )

    def __post_init__(self) -> None:
        check_tau_h(self.tau_h)
        check_success_threshold(self.success_threshold)
        p_star(self.group_size)  # raises for an impossible group size
        assert self.gates is not None  # raises for an impossible gate

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The limits that checkpoints must keep."""
        single = (("min_coverage", self.min_coverage), ("max_degenerate", self.max_degenerate))
        return (
            *map(Gate.pass_at, self.min_pass_at),
            *(Gate(name, limit) for name, limit in single if limit is not None),
        )


@described
@dataclass(frozen=True)
class RescueOptions:
    """What a rescue looks for.

    Raises:
        ValueError: no base, or a number out of its range.

    """

    _argument_group_name: ClassVar[str] = "rescue"
    base: Path | str | None = flag(
        None, "the model that the checkpoint was trained from", metavar="CKPT"
    )
    floor: float = flag(TAU_H, "rollout entropy that the interval's lower end must reach, nats")
    tolerance: float = flag(1 / 32, "largest share of the base too much")
    group_size: int = flag(8, "rollouts per prompt that RL will use")

    def __post_init__(self) -> None:
        if self.base is None:
            raise ValueError("base is missing: the model that the checkpoint was trained from")
        if not 0 < self.floor < float("inf"):
            raise ValueError(f"floor is {self.floor!r}; it must be an entropy in nats > 0")
        if not 0 < self.tolerance <= 0.5:
            raise ValueError(f"tolerance is {self.tolerance!r}; it must be in (0, 0.5]")


def screening_arguments(**flat: Any) -> dict[str, Any]:
    """Keyword arguments of ``screen`` from flat ones, as a recipe has them."""
    return arranged(flat, sampling=Sampling, judging=Judging, loading=Loading, output=Output)
