"""One SFT run per loss that leaves a checkpoint at each depth, and goes on where it was stopped.

A depth is a number of epochs.

Checkpoints are ``NAME-depth-D`` directories. The trainer writes one under another name; it gets its
own by a rename once it is complete, so a directory of that name is a finished depth. While the run
lasts, checkpoints carry optimizer and scheduler state; when its last depth is done only model and
tokenizer stay.

The learning rate is constant. A depth is then what a run of that many epochs would have ended with,
and the depths of one run can be compared.
"""

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# What only continuing needs, beside the weights: two thirds of a checkpoint's size, and pickles.
TRAINING_STATE = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
    "training_args.bin",
)


@dataclass(frozen=True)
class DepthTraining:
    """How a ladder of depths is trained.

    Attributes:
        depths: epochs at which a checkpoint is kept, ascending.
        learning_rate: constant over the run.
        batch_size: rows per optimizer step.
        bf16: bf16 autocast over fp32 weights; else fp32 throughout.
        seed: of the order of rows.

    """

    depths: tuple[int, ...]
    learning_rate: float
    batch_size: int
    bf16: bool
    seed: int

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 1:
            raise ValueError(
                "depths are whole epochs, each at least 1, in ascending order, such as 1 2 4; got "
                f"{' '.join(map(str, self.depths)) or 'none'}"
            )


def depth_directory(folder: Path, name: str, depth: int) -> Path:
    """Where the checkpoint of one depth lies."""
    return folder / f"{name}-depth-{depth}"


def train_depths(
    model_directory: str | Path,
    rows: Sequence[dict[str, Any]],
    *,
    loss: str,
    training: DepthTraining,
    folder: Path,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Train one loss and return its checkpoints, shallowest first; finished ones are kept.

    Args:
        model_directory: directory or hub id of the model to start from.
        rows: training rows with ``prompt`` and ``completion``; the loss is on completions.
        loss: a name that ``SEDConfig`` knows.
        training: depths and hyper-parameters.
        folder: receives the checkpoints; made if missing.
        name: what the checkpoints are called; ``loss`` when left out.
        options: further fields of ``SEDConfig``, such as the loss's options; they come before what
            is set here.

    Raises:
        ValueError: an unknown loss.
        TypeError: an option that SEDConfig does not have.

    """
    label = loss if name is None else name
    targets = [depth_directory(folder, label, depth) for depth in training.depths]
    if not targets[-1].is_dir():
        _train(
            model_directory,
            rows,
            loss=loss,
            training=training,
            folder=folder,
            targets=targets,
            options=options or {},
        )
    for target in targets:
        for file in TRAINING_STATE:
            (target / file).unlink(missing_ok=True)
    return targets


def _train(
    model_directory: str | Path,
    rows: Sequence[dict[str, Any]],
    *,
    loss: str,
    training: DepthTraining,
    folder: Path,
    targets: Sequence[Path],
    options: Mapping[str, Any],
) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropyfloor import SEDConfig, SEDTrainer

    work = folder / f".unfinished-{targets[-1].name}"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed while it saved
    with warnings.catch_warnings():
        # The name that trl 1.16 sets too; transformers 5.23 calls it activation_checkpointing.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        config = SEDConfig(**{**_settings(training, work), "loss": loss, **options})
    # fp32 whatever the checkpoint's dtype: small updates vanish in the rounding of bf16
    # weights.
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    trainer = SEDTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(model_directory),
        callbacks=[_SaveDepths(dict(zip(training.depths, targets, strict=True)))],
    )
    trainer.remove_callback(PrinterCallback)  # with disable_tqdm=True it would print every log
    finished = [target for target in targets if target.is_dir()]
    trainer.train(resume_from_checkpoint=str(finished[-1]) if finished else None)
    shutil.rmtree(work, ignore_errors=True)


def _settings(training: DepthTraining, work: Path) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(work),
        "num_train_epochs": training.depths[-1],
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": training.batch_size,
        "bf16": training.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,  # recomputing costs a third more time; rows are short
        "save_strategy": "no",  # _SaveDepths decides
        "logging_strategy": "epoch",
        "report_to": "none",
        "seed": training.seed,
    }


class _SaveDepths(TrainerCallback):
    """Asks for a checkpoint at the end of chosen epochs, and renames it once it is written."""

    def __init__(self, targets: dict[int, Path]) -> None:
        self._targets = targets

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save if this epoch is one of the depths."""
        target = self._targets.get(round(state.epoch or 0))
        control.should_save = target is not None and not target.is_dir()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The checkpoint is complete: rename it."""
        written = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        written.rename(self._targets[round(state.epoch or 0)])


def depth_of(checkpoint: str) -> tuple[str, int]:
    """``"sed-depth-2"`` -> ``("sed", 2)``; a name without depth is at depth 0."""
    match = re.fullmatch(r"(.+)-depth-(\d+)", checkpoint)
    return (match[1], int(match[2])) if match else (checkpoint, 0)
