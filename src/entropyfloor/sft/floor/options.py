"""FloorOptions: the fields of the entropy floor, for every config of a trainer that holds one."""

from __future__ import annotations

from dataclasses import dataclass

from entropyfloor.rollouts.options import flag
from entropyfloor.sft.floor.controller import FloorController
from entropyfloor_losses import EntropyTerm

PLACES = ("onset_anchor", "anchor", "uniform")
VIOLATIONS = ("constrain", "stop", "warn")

# The model of the onset has little more entropy than the target. Weight 1 ends at the mean of its
# distribution and the label's, and that is about what holds; the starting model has much more.
_ONSET_WEIGHT = 1.0


@dataclass
class FloorOptions:
    """Fields of an entropy floor; a base class beside trl's config."""

    entropy_floor: float | None = flag(
        None,
        "Keep the entropy of rollouts above this, nats (0.18 is the rank-inversion paper's "
        "threshold); composes with any loss. None: no floor.",
    )
    floor_place: str = flag(
        "onset_anchor",
        "Where the entropy goes: onset_anchor (KL from the model in training as it was when its "
        "entropy came near the floor), anchor (KL from the model that training started from) or "
        "uniform (a bonus on every token).",
    )
    floor_margin: float = flag(0.25, "Aim at entropy_floor * (1 + floor_margin).")
    floor_max_weight: float = flag(2.0, "Largest weight of the entropy term.")
    on_violation: str = flag(
        "constrain",
        "constrain: a controller moves the weight so that the floor holds; stop: the plain loss, "
        "and training ends at the first probe below the floor and restores the last checkpoint "
        "above it; warn: the plain loss, measured.",
    )
    floor_probe_prompts: int = flag(
        16,
        "How many prompts are probed at most (0: no probe, the floor holds teacher-forced): the "
        "first of the trainer's probe_prompts, else of the evaluation set, else of the training "
        "set.",
    )
    floor_probe_steps: int | None = flag(
        None,
        "Steps between probes; None chooses so that they take 5 %% of the time at most. A probe is "
        "also taken before every checkpoint.",
    )
    floor_probe_tokens: int = flag(64, "Length limit of a probe's rollouts.")

    def check_floor(self) -> None:
        """Raise ValueError for a floor that cannot be."""
        if self.entropy_floor is None:
            return
        if self.on_violation not in VIOLATIONS:
            raise ValueError(
                f"on_violation is {self.on_violation!r}; choose one of {', '.join(VIOLATIONS)}"
            )
        self.build_controller()
        self.build_term()
        if self.floor_probe_prompts < 0:
            raise ValueError(f"floor_probe_prompts is {self.floor_probe_prompts}; it must be >= 0")
        for name in ("floor_probe_steps", "floor_probe_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be >= 1")

    def build_controller(self) -> FloorController:
        """The controller these settings describe; ``entropy_floor`` must be set."""
        assert self.entropy_floor is not None
        onset = self.floor_place == "onset_anchor"
        return FloorController(
            floor=self.entropy_floor,
            margin=self.floor_margin,
            max_weight=self.floor_max_weight,
            initial_weight=_ONSET_WEIGHT if onset else FloorController.initial_weight,
        )

    def build_term(self) -> EntropyTerm:
        """The entropy term these settings describe."""
        if self.floor_place not in PLACES:
            raise ValueError(
                f"floor_place is {self.floor_place!r}; choose one of {', '.join(PLACES)}"
            )
        return EntropyTerm(place=self.floor_place)  # type: ignore[arg-type]
