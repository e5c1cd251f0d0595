"""Which run the coupling is measured along, and what is measured; no torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from entropyfloor.rollouts.options import flag

_KINDS = "model directory, PEFT adapter directory, hub id, or a trainer's folder"


@dataclass(frozen=True)
class RunOptions:
    """The checkpoints of one run, and what it started from.

    Attributes:
        sft: the SFT checkpoint that RL started from; or, after RL, the checkpoints of an SFT run.
        rl: the checkpoints of the RL run (a trainer's folder stands for all of them); or the one
            that SFT started from.
        order: which came first; by which side has one checkpoint (both: ``sft-rl``) when left out.
        steps: of the run's checkpoints; read off ``checkpoint-N`` when left out.

    """

    _argument_group_name: ClassVar[str] = "the run"
    sft: list[str] = flag([], f"SFT model: {_KINDS}", metavar="CKPT")
    rl: list[str] = flag(
        [], f"checkpoints of the RL run: {_KINDS} (all its checkpoint-*)", metavar="CKPT"
    )
    order: Literal["sft-rl", "rl-sft"] | None = flag(
        None, "which came first (default: the side with one checkpoint; sft-rl if both)"
    )
    steps: list[float] | None = flag(
        None, "of the run's checkpoints (default: read off checkpoint-N)"
    )


@dataclass(frozen=True)
class CouplingOptions:
    """What is measured along the run, beside rewards and losses.

    Attributes:
        sft_samples: samples of the SFT model per demonstration's prompt.
        gradient_rows: how many demonstrations and prompts the gradients are of; 0 for none.
        rank: top singular directions for spectral concentration.
        gradient_memory: GiB of host memory for sums of gradients; less means more passes.
        weight: what a nat per token of SFT loss costs in reward.

    Raises:
        ValueError: a number out of its range.

    """

    _argument_group_name: ClassVar[str] = "gradients and durations"
    sft_samples: int = flag(4, "samples of the SFT model per demonstration's prompt")
    gradient_rows: int = flag(64, "demonstrations and prompts that gradients are of; 0: none")
    rank: int = flag(8, "top singular directions")
    gradient_memory: float = flag(
        4.0, "host memory for sums of gradients, GiB; less means more passes"
    )
    weight: float = flag(1.0, "what a nat per token of SFT loss costs in reward")

    def __post_init__(self) -> None:
        for name, least in (("sft_samples", 1), ("gradient_rows", 0), ("rank", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not 0.0 < self.gradient_memory < float("inf"):
            raise ValueError(f"gradient_memory must be positive; got {self.gradient_memory}")
