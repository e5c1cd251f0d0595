"""SEDConfig: trl's SFTConfig plus the choice of an entropy-preserving loss.

Loss options carry their paper's name and are None by default, which means "the loss's own default";
setting one that the chosen loss does not have is an error, not a no-op.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from entropyfloor_losses import EntropyTerm, loss_by_name, loss_name_and_options

from .entropy_floor import VIOLATIONS
from .floor_controller import FloorController

LOSS_OPTIONS = ("lam", "top_k", "tau", "quantile", "beta", "smoothing")


@dataclass
class SEDConfig(SFTConfig):
    """Arguments of `SEDTrainer`: every field of ``trl.SFTConfig`` and the ones below.

    Args:
        loss: "ce", "sed", "dcr", "dft", "gem", "entropy_bonus" or "selective_entropy_bonus"; a loss
            object of `entropyfloor_losses` is taken apart into its name and options. Your own
            callables go to ``SEDTrainer(loss=...)``.
        lam: weight of SED's penalty or of the entropy bonus, >= 0.
        top_k: k of the top-k mass that selects uncertain tokens.
        tau: threshold: on the top-k mass (SED, selective bonus; "auto" calibrates it on the initial
            model), or on p_y (DCR).
        quantile: for tau="auto": the share of scored tokens selected when training starts.
        beta: GEM's temperature.
        smoothing: label smoothing of cross-entropy, in [0, 1).
        calibration_rows: for tau="auto": rows of the training set that are measured, spread evenly.
        entropy_floor: keep the entropy of rollouts above this, nats (0.18 is the rank-inversion
            paper's threshold); composes with any loss. None: no floor.
        floor_place: where the entropy goes: "anchor" (KL from the base model, KL(base || model)),
            "reverse_anchor" (KL(model || base)), "uniform", "hinge", "selective" or "support"; see
            `entropyfloor_losses.EntropyTerm`.
        floor_margin: aim at ``entropy_floor * (1 + floor_margin)``.
        floor_max_weight: largest weight of the term.
        floor_base_cache: folder for the base's most likely tokens at every scored position of the
            training set, computed before the first step: the anchor then costs neither a second
            model nor a second forward pass. For floor_place="anchor".
        floor_base_top_k: how many tokens per position it keeps.
        on_violation: "constrain": a controller moves the weight so that the floor holds; "stop":
            the plain loss, and training ends at the first probe below the floor and restores the
            last checkpoint above it; "warn": the plain loss, measured.
        floor_probe_prompts: prompts of the probe (0: no probe, the floor holds teacher-forced).
            They come from SEDTrainer's ``probe_prompts``, else from the evaluation set, else from
            the training set.
        floor_probe_steps: steps between probes; None chooses so that they take 5 % of the time at
            most. A probe is also taken before every checkpoint.
        floor_probe_tokens: length limit of a probe's rollouts.

    Raises:
        ValueError: an unknown loss, an option the loss does not have, a value out of range, or a
            setting of SFTConfig that would silently replace our loss.

    """

    # Annotated str, although objects are taken: the command line parses by the annotation.
    loss: str = field(
        default="sed",
        metadata={
            "help": "Loss: ce, sed, dcr, dft, gem, entropy_bonus or selective_entropy_bonus."
        },
    )
    lam: float | None = field(
        default=None, metadata={"help": "Weight of SED's penalty or of the entropy bonus (>= 0)."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "k of the top-k mass that selects uncertain tokens."}
    )
    tau: str | None = field(
        default=None,
        metadata={
            "help": "Threshold: top-k mass in (0, 1] or 'auto' (sed, selective_entropy_bonus); "
            "label probability (dcr)."
        },
    )
    quantile: float | None = field(
        default=None,
        metadata={"help": "tau='auto': share of scored tokens selected when training starts."},
    )
    beta: float | None = field(default=None, metadata={"help": "GEM's temperature (> 0)."})
    smoothing: float | None = field(
        default=None, metadata={"help": "Label smoothing of cross-entropy, in [0, 1)."}
    )
    calibration_rows: int = field(
        default=128, metadata={"help": "tau='auto': training rows measured to calibrate tau."}
    )

    entropy_floor: float | None = field(
        default=None, metadata={"help": "Keep the entropy of rollouts above this, nats."}
    )
    floor_place: str = field(
        default="anchor",
        metadata={
            "help": "Where the entropy goes: anchor, reverse_anchor, uniform, hinge, selective or "
            "support."
        },
    )
    floor_margin: float = field(
        default=0.25, metadata={"help": "Aim at entropy_floor * (1 + floor_margin)."}
    )
    floor_max_weight: float = field(
        default=2.0, metadata={"help": "Largest weight of the entropy term."}
    )
    floor_base_cache: str | None = field(
        default=None,
        metadata={"help": "Anchor: folder that caches the base model's most likely tokens."},
    )
    floor_base_top_k: int = field(
        default=32, metadata={"help": "Tokens per position in floor_base_cache."}
    )
    on_violation: str = field(
        default="constrain", metadata={"help": "Entropy floor: constrain, stop or warn."}
    )
    floor_probe_prompts: int = field(
        default=16, metadata={"help": "Prompts whose rollouts are probed; 0 for no probe."}
    )
    floor_probe_steps: int | None = field(
        default=None, metadata={"help": "Steps between probes; default: 5 %% of the time."}
    )
    floor_probe_tokens: int = field(
        default=64, metadata={"help": "Length limit of a probe's rollouts."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.loss, str):
            self.loss, options = loss_name_and_options(self.loss)
            given = [name for name in LOSS_OPTIONS if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"loss is an object and {', '.join(given)} set beside it; "
                    "put every option into the object"
                )
            for name, value in options.items():
                setattr(self, name, value)
        if self.tau is not None and self.tau != "auto":
            try:
                self.tau = float(self.tau)  # type: ignore[assignment]
            except ValueError:
                raise ValueError(f'tau is {self.tau!r}; it must be "auto" or a number') from None
        if self.calibration_rows < 1:
            raise ValueError(f"calibration_rows is {self.calibration_rows}; it must be >= 1")
        self.build_loss()
        self._check_floor()
        self.refuse_what_replaces_the_loss()

    def loss_options(self) -> dict[str, Any]:
        """The loss options that were set."""
        return {n: value for n in LOSS_OPTIONS if (value := getattr(self, n)) is not None}

    def build_loss(self) -> Any:
        """The loss object these settings describe."""
        return loss_by_name(self.loss, **self.loss_options())

    def _check_floor(self) -> None:
        if self.entropy_floor is None:
            return
        if self.on_violation not in VIOLATIONS:
            raise ValueError(
                f"on_violation is {self.on_violation!r}; choose one of {', '.join(VIOLATIONS)}"
            )
        self.build_controller()
        self.build_term()
        if self.floor_base_cache is not None and self.floor_place != "anchor":
            raise ValueError(
                "floor_base_cache keeps what floor_place='anchor' needs; with "
                f"floor_place={self.floor_place!r} nothing would use it"
            )
        if self.floor_probe_prompts < 0:
            raise ValueError(f"floor_probe_prompts is {self.floor_probe_prompts}; it must be >= 0")
        for name in ("floor_probe_steps", "floor_probe_tokens", "floor_base_top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be >= 1")

    def build_controller(self) -> FloorController:
        """The controller these settings describe; ``entropy_floor`` must be set."""
        assert self.entropy_floor is not None
        return FloorController(
            floor=self.entropy_floor,
            margin=self.floor_margin,
            max_weight=self.floor_max_weight,
        )

    def build_term(self) -> EntropyTerm:
        """The entropy term these settings describe."""
        return EntropyTerm(place=self.floor_place)  # type: ignore[arg-type]

    @classmethod
    def from_arguments(cls, args: TrainingArguments) -> SEDConfig:
        """Turn an SFTConfig or plain TrainingArguments into an SEDConfig with the default loss.

        Raises:
            ValueError: a subclass with fields of its own, which an SEDConfig cannot hold.

        """
        own = {f.name for f in fields(args)} - {f.name for f in fields(cls)}
        if own:
            raise ValueError(
                f"{type(args).__name__} has fields that SEDConfig does not have: "
                f"{', '.join(sorted(own))}; derive {type(args).__name__} from SEDConfig"
            )
        # Not args.to_dict(): it masks every field that ends in `_token`, eos_token among them.
        return cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})

    def refuse_what_replaces_the_loss(self) -> None:
        """Raise ValueError where a setting of SFTConfig would train on another loss than ours."""
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} makes trl train on the "
                "model's own smoothed loss, so the chosen loss would be ignored. Use "
                f'SEDConfig(loss="ce", smoothing={self.label_smoothing_factor}) instead'
            )
        if self.loss_type != "nll":
            raise ValueError(
                f"loss_type={self.loss_type!r} is SFTConfig's own switch and would be applied on "
                'top of the chosen loss. Leave loss_type="nll" and use '
                f"SEDConfig(loss={self.loss_type!r})"
            )
