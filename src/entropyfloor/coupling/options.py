"""Which run the coupling is measured along, and what is measured; no torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from entropyfloor.rollouts.options import described, flag

_KINDS = "model directory, PEFT adapter directory, hub id, or a trainer's folder"


@described
@dataclass(frozen=True)
class RunOptions:
    """The checkpoints of one run, and what it started from."""

    _argument_group_name: ClassVar[str] = "the run"
    sft: list[str] = flag(
        [],
        f"SFT model that RL started from, or checkpoints of an SFT run after RL: {_KINDS}",
        metavar="CKPT",
    )
    rl: list[str] = flag(
        [],
        f"checkpoints of the RL run, or the one that SFT started from: {_KINDS} (all of them)",
        metavar="CKPT",
    )
    order: Literal["sft-rl", "rl-sft"] | None = flag(
        None, "which came first (default: the side with one checkpoint; sft-rl if both)"
    )
    steps: list[float] | None = flag(
        None, "of the run's checkpoints (default: read off checkpoint-N)"
    )


@described
@dataclass(frozen=True)
class CouplingOptions:
    """What is measured along the run, beside rewards and losses.

    Raises:
        ValueError: a number out of its range.

    """

    _argument_group_name: ClassVar[str] = "gradients and durations"
    sft_samples: int = flag(4, "samples of the SFT model per demonstration's prompt")
    gradient_rows: int = flag(64, "demonstrations and prompts that gradients are of; 0: none")
    rank: int = flag(8, "top singular directions, for spectral concentration")
    gradient_memory: float = flag(
        4.0, "host memory for sums of gradients, GiB; less means more passes"
    )
    weight: float = flag(1.0, "what a nat per token of SFT loss costs in reward")

    def __post_init__(self) -> None:
        for name, least in (("sft_samples", 1), ("gradient_rows", 0), ("rank", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not 0.0 <= self.weight < float("inf"):
            raise ValueError(
                "weight must be 0 or positive, in units of reward per nat of SFT loss; got "
                f"{self.weight!r}"
            )
        if not 0.0 < self.gradient_memory < float("inf"):
            raise ValueError(f"gradient_memory must be positive; got {self.gradient_memory}")
