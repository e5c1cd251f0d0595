"""SEDConfig: trl's SFTConfig plus the choice of an entropy-preserving loss.

Loss options carry their paper's name and are None by default, which means "the loss's own default";
setting one that the chosen loss does not have is an error, not a no-op.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from entropyfloor.rollouts.options import flag
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.sft.loss_reference import check_reference
from entropyfloor_losses import LOSS_NAMES, loss_by_name, loss_name_and_options, loss_options
from entropyfloor_losses.inputs import check_count

LOSS_OPTIONS = tuple(sorted({option for name in LOSS_NAMES for option in loss_options(name)}))


@dataclass
class SEDConfig(FloorOptions, SFTConfig):
    """Arguments of `SEDTrainer`: every field of ``trl.SFTConfig`` and the ones below.

    ``loss`` is one of `entropyfloor_losses.LOSS_NAMES`; the entropy floor's further fields are
    those of `FloorOptions`.

    Raises:
        ValueError: an unknown loss, an option the loss does not have, a value out of range, or a
            setting of SFTConfig that would silently replace our loss.

    """

    # Annotated str, although objects are taken: the command line parses by the annotation.
    loss: str = flag(
        "sed",
        f"One of {', '.join(LOSS_NAMES)}; a loss object is taken apart into its name and options. "
        "Your own callables go to SEDTrainer(loss=...).",
    )
    lam: float | None = flag(
        None, "Weight of SED's penalty, of the entropy bonus or of ASFT's KL, >= 0."
    )
    top_k: int | None = flag(
        None, "k of the top-k mass that selects uncertain tokens, or of EAFT's entropy."
    )
    tau: str | None = flag(
        None,
        "Threshold: on the top-k mass, in (0, 1] (sed, selective_entropy_bonus; 'auto' calibrates "
        "it on the initial model), or on p_y (dcr).",
    )
    quantile: float | None = flag(
        None, "tau='auto': share of scored tokens selected when training starts."
    )
    beta: float | None = flag(None, "GEM's temperature, GIFT's inverse temperature.")
    smoothing: float | None = flag(None, "Label smoothing of cross-entropy, in [0, 1).")
    alpha: float | None = flag(None, "Exponent of EAFT's weight, of the power loss.")
    normaliser: float | None = flag(
        None, "What EAFT divides the entropy by, nats; default: log top_k."
    )
    epsilon_high: float | None = flag(
        None, "PSFT's clip: growth of a label's probability between refreshes."
    )
    refresh_steps: int | None = flag(None, "PSFT: optimizer steps between snapshots of the model.")
    group_size: int | None = flag(None, "DCO: samples per prompt of the RL to come.")
    drop_fraction: float | None = flag(
        None, "TailSFT: share of a step's sequences that is left out."
    )
    calibration_rows: int = flag(
        128, "tau='auto': rows of the training set that are measured, spread evenly."
    )

    reference_model: str | None = flag(
        None,
        "What a loss compares with, where it is not the model that training starts from (GIFT, "
        "ASFT, TailSFT).",
    )
    reference_cache: str | None = flag(
        None,
        "Folder for what the floor's anchor and the loss ask of their reference model, at every "
        "scored position, computed before the first step (at the onset for onset_anchor): they "
        "then cost neither a second model nor a second forward pass. An onset's cache is of one "
        "run. Losses that need no more than the labels' log-probabilities (TailSFT) always "
        "have one, in output_dir by default.",
    )
    reference_top_k: int = flag(32, "How many tokens per position reference_cache keeps.")

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
        check_count("calibration_rows", self.calibration_rows, least=1)
        check_count("reference_top_k", self.reference_top_k, least=1)
        loss = self.build_loss()
        self.check_floor()
        check_reference(loss, self)
        self.refuse_what_replaces_the_loss()

    def loss_options(self) -> dict[str, Any]:
        """The loss options that were set."""
        return {n: value for n in LOSS_OPTIONS if (value := getattr(self, n)) is not None}

    def build_loss(self) -> Any:
        """The loss object these settings describe."""
        return loss_by_name(self.loss, **self.loss_options())

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
        if self.use_liger_kernel:
            arguments: Any = self
            kernels = arguments.liger_kernel_config or {}
            if kernels.get("fused_linear_cross_entropy"):
                raise ValueError(
                    "liger_kernel_config has fused_linear_cross_entropy=True, with which Liger "
                    "replaces the forward that the chosen loss is computed in. Leave it out: the "
                    "kernels of its layers are used"
                )
            # Liger's default, which trl below 1.15 leaves as it is.
            arguments.liger_kernel_config = {**kernels, "fused_linear_cross_entropy": False}
        if self.loss_type not in (None, "nll", "chunked_nll"):  # trl's names of cross-entropy
            raise ValueError(
                f"loss_type={self.loss_type!r} is SFTConfig's own switch, and the chosen loss "
                f"replaces it. Leave loss_type out and use SEDConfig(loss={self.loss_type!r})"
            )
