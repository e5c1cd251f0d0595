"""SEDConfig: trl's SFTConfig plus the choice of an entropy-preserving loss.

Loss options carry their paper's name and are None by default, which means "the loss's own default";
setting one that the chosen loss does not have is an error, not a no-op.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor_losses import loss_by_name, loss_name_and_options

_CACHED_PLACES = ("onset_anchor", "anchor")
LOSS_OPTIONS = ("lam", "top_k", "tau", "quantile", "beta", "smoothing")


@dataclass
class SEDConfig(FloorOptions, SFTConfig):
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
        floor_reference_cache: folder for the reference model's most likely tokens at every scored
            position of the training set, computed before the first step ("anchor") or at the onset
            ("onset_anchor"): the anchor then costs neither a second model nor a second forward
            pass. An onset's cache is of one run.
        floor_reference_top_k: how many tokens per position it keeps.

    The entropy floor's further fields are those of `FloorOptions`.

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

    floor_reference_cache: str | None = field(
        default=None,
        metadata={"help": "Anchors: folder that caches the reference's most likely tokens."},
    )
    floor_reference_top_k: int = field(
        default=32, metadata={"help": "Tokens per position in floor_reference_cache."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.loss, str):
            self.loss, options = loss_name_and_options(self.loss)
            beside = [name for name in LOSS_OPTIONS if getattr(self, name) is not None]
            if beside:
                raise ValueError(
                    f"loss is an object and {', '.join(beside)} set beside it; "
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
        self.check_floor()
        self.refuse_what_replaces_the_loss()

    def loss_options(self) -> dict[str, Any]:
        """The loss options that were set."""
        return {n: value for n in LOSS_OPTIONS if (value := getattr(self, n)) is not None}

    def build_loss(self) -> Any:
        """The loss object these settings describe."""
        return loss_by_name(self.loss, **self.loss_options())

    def check_floor(self) -> None:
        """Raise ValueError for a floor that cannot be."""
        super().check_floor()
        if self.entropy_floor is None:
            return
        if self.floor_reference_cache is not None and self.floor_place not in _CACHED_PLACES:
            raise ValueError(
                f"floor_reference_cache keeps what floor_place={self.floor_place!r} does not need, "
                f"so nothing would use it; it is for {' and '.join(_CACHED_PLACES)}"
            )
        if self.floor_reference_top_k < 1:
            raise ValueError(
                f"floor_reference_top_k is {self.floor_reference_top_k}; it must be >= 1"
            )

    @classmethod
    def from_arguments(cls, args: TrainingArguments) -> SEDConfig:
        """Turn an SFTConfig or plain TrainingArguments into an SEDConfig with the default loss.

        Raises:
            ValueError: a subclass with fields of its own, which an SEDConfig cannot hold.

        """
        names = {f.name for f in fields(args)} - {f.name for f in fields(cls)}
        if names:
            raise ValueError(
                f"{type(args).__name__} has fields that SEDConfig does not have: "
                f"{', '.join(sorted(names))}; derive {type(args).__name__} from SEDConfig"
            )
        # Not args.to_dict(): it masks every field that ends in `_token`, eos_token among them.
        return cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})

    def refuse_what_replaces_the_loss(self) -> None:
        """Raise ValueError for settings of SFTConfig's own loss, which the chosen one replaces."""
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} smooths the model's own "
                "loss, so it would have no effect on the chosen one. Use "
                f'SEDConfig(loss="ce", smoothing={self.label_smoothing_factor}) instead'
            )
        if self.loss_type not in (None, "nll", "chunked_nll"):  # trl's names of cross-entropy
            raise ValueError(
                f"loss_type={self.loss_type!r} is SFTConfig's own switch, and the chosen loss "
                f"replaces it. Leave loss_type out and use SEDConfig(loss={self.loss_type!r})"
            )
