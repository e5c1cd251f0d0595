"""FloorOptions: the fields of the entropy floor, for every config of a trainer that holds one."""

from __future__ import annotations

from dataclasses import dataclass

from entropyfloor.rollouts.options import flag
from entropyfloor.sft.floor.controller import FloorController
from entropyfloor_losses import EntropyTerm
from entropyfloor_losses.inputs import check_count, check_positive

PLACES = ("onset_anchor", "anchor", "uniform")
VIOLATIONS = ("constrain", "stop", "warn")
AUTO = "auto"

# The model of the onset has little more entropy than the target. Weight 1 ends at the mean of its
# distribution and the label's, and that is about what holds; the starting model has much more.
_ONSET_WEIGHT = 1.0


@dataclass
class FloorOptions:
    """Fields of an entropy floor; a base class beside trl's config."""

    # Annotated str, although numbers are taken: the command line parses by the annotation.
    entropy_floor: str | None = flag(
        None,
        "Keep the entropy of rollouts above this, nats (0.18 is the rank-inversion paper's "
        "threshold); composes with any loss. 'auto': keep the entropy of held-out rows above "
        "their lowest loss so far, times floor_factor. None: no floor.",
    )
    floor_place: str = flag(
        "onset_anchor",
        "Where the entropy goes: onset_anchor (KL from the model in training as it was when its "
        "entropy came near the floor), anchor (KL from the model that training started from) or "
        "uniform (a bonus on every token).",
    )
    floor_factor: float = flag(
        1.0, "entropy_floor='auto': the floor is this times the lowest held-out loss."
    )
    floor_held_out_rows: int = flag(
        64,
        "entropy_floor='auto': rows that are measured, of the evaluation set; without one, so many "
        "(a fifth of the training set at most) are held out from training.",
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
        "Steps between probes (of rollouts, or of entropy_floor='auto's held-out rows); None "
        "chooses so that they take 5 %% of the time at most, and measures an 'auto' floor that is "
        "not in force yet whenever entropy has fallen by a fifth. A probe is also taken before "
        "every checkpoint.",
    )
    floor_probe_tokens: int = flag(64, "Length limit of a probe's rollouts.")

    @property
    def reads_data(self) -> bool:
        """Whether the floor is read off held-out rows."""
        return self.entropy_floor == AUTO

    def check_floor(self) -> None:
        """Raise ValueError for a floor that cannot be."""
        if self.entropy_floor is None:
            return
        if self.on_violation not in VIOLATIONS:
            raise ValueError(
                f"on_violation is {self.on_violation!r}; choose one of {', '.join(VIOLATIONS)}"
            )
        if not self.reads_data:
            try:
                # YAML's `true` is no number of nats, although Python's is 1.
                number = None if isinstance(self.entropy_floor, bool) else float(self.entropy_floor)
            except (TypeError, ValueError):
                number = None
            if number is None:
                raise ValueError(f"entropy_floor is {self.entropy_floor!r}; give nats, or 'auto'")
            self.entropy_floor = number  # type: ignore[assignment]
        check_positive("floor_factor", self.floor_factor)
        if not self.reads_data and self.floor_factor != 1:
            raise ValueError(
                f"floor_factor is {self.floor_factor} and entropy_floor {self.entropy_floor}: it "
                "is a factor of what entropy_floor='auto' measures; multiply the number instead"
            )
        self.build_controller()
        self.build_term()
        check_count("floor_probe_prompts", self.floor_probe_prompts, least=0)
        for name in ("floor_probe_tokens", "floor_held_out_rows"):
            check_count(name, getattr(self, name), least=1)
        if self.floor_probe_steps is not None:
            check_count("floor_probe_steps", self.floor_probe_steps, least=1)

    def build_controller(self) -> FloorController:
        """The controller these settings describe; ``entropy_floor`` must be set."""
        assert self.entropy_floor is not None
        # Of "auto" the first measurement replaces the number, before anything is held.
        floor = 1.0 if self.reads_data else float(self.entropy_floor)
        onset = self.floor_place == "onset_anchor"
        return FloorController(
            floor=floor,
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
