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


@described
@dataclass(frozen=True)
class Judging:
    """What is computed from the rollouts, beside how they were drawn.

    Raises:
        ValueError: an impossible group size or threshold.

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

    def __post_init__(self) -> None:
        check_tau_h(self.tau_h)
        check_success_threshold(self.success_threshold)
        p_star(self.group_size)  # raises for an impossible group size


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
