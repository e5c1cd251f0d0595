"""One SFT run per loss that leaves a checkpoint at each depth, and goes on where it was stopped.

A depth is a number of epochs; of 1.9 epochs with ten steps each, 19 steps are trained.

Checkpoints are ``NAME-depth-D`` directories. The trainer writes one under another name; it gets its
own by a rename once it is complete, so a directory of that name is a finished depth. While the run
lasts, the deepest carries optimizer and scheduler state, from which a killed run goes on; when its
last depth is done only model and tokenizer stay.

The learning rate is constant. A depth is then what a run of that many epochs would have ended with,
and the depths of one run can be compared.
"""

import math
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
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
    "floor_reference.safetensors",
    "floor_reference.json",
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

    depths: tuple[float, ...]
    learning_rate: float
    batch_size: int
    bf16: bool
    seed: int

    def __post_init__(self) -> None:
        check_depths(self.depths)


def check_depths(depths: Sequence[float]) -> None:
    """Raise ValueError for depths that no run can have."""
    ascending = list(depths) == sorted(set(depths))
    if not depths or not ascending or not 0 < depths[0] <= depths[-1] < math.inf:
        raise ValueError(
            "depths are numbers of epochs above 0, in ascending order, such as 1 1.9 4; got "
            f"{' '.join(map(str, depths)) or 'none'}"
        )


def depth_directory(folder: Path, name: str, depth: float) -> Path:
    """Where the checkpoint of one depth lies."""
    return folder / f"{name}-depth-{depth:g}"


def train_depths(
    model_directory: str | Path,
    rows: Sequence[dict[str, Any]],
    *,
    loss: str,
    training: DepthTraining,
    folder: Path,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    peft_config: Any = None,
    probe_prompts: Sequence[Any] | None = None,
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
            is set here. ``model_init_kwargs`` go to ``from_pretrained``; weights are fp32 always.
        peft_config: train an adapter; the checkpoints are adapter directories then.
        probe_prompts: ``SEDTrainer``'s, for an entropy floor.

    Raises:
        ValueError: an unknown loss, or two depths that are the same number of steps.
        TypeError: an option that SEDConfig does not have.

    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropyfloor import SEDConfig, SEDTrainer

    settings = {"loss": loss, **(options or {})}
    loading = settings.pop("model_init_kwargs", None) or {}

    def make(work: Path, save: TrainerCallback) -> Any:
        # fp32 whatever the checkpoint's dtype: small updates vanish in the rounding of bf16
        # weights.
        model = AutoModelForCausalLM.from_pretrained(
            model_directory, **{**loading, "dtype": torch.float32}
        )
        return SEDTrainer(
            model=model,
            args=SEDConfig(**{**_settings(training, work), **settings}),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=AutoTokenizer.from_pretrained(model_directory),
            callbacks=[save],
            peft_config=peft_config,
            probe_prompts=probe_prompts,
        )

    return train_ladder(
        make, depths=training.depths, folder=folder, name=loss if name is None else name
    )


def train_ladder(
    make: Callable[[Path, TrainerCallback], Any],
    *,
    depths: Sequence[float],
    folder: Path,
    name: str,
) -> list[Path]:
    """Train any trainer to all depths; return the checkpoints, shallowest first.

    Args:
        make: given its output folder and a callback, returns the trainer that has both; not called
            when the deepest checkpoint is there. The callback comes first among its callbacks.
        depths: epochs, ascending.
        folder: receives the checkpoints; made if missing.
        name: they are called ``NAME-depth-D``.

    Raises:
        ValueError: two depths that are the same number of steps.

    """
    targets = [depth_directory(folder, name, depth) for depth in depths]
    if not targets[-1].is_dir():
        _train(make, depths, targets, folder / f".unfinished-{targets[-1].name}")
    for target in targets:
        strip_training_state(target)
    return targets


def strip_training_state(checkpoint: Path) -> None:
    """Leave model and tokenizer."""
    for file in TRAINING_STATE:
        (checkpoint / file).unlink(missing_ok=True)


def _train(
    make: Callable[[Path, TrainerCallback], Any],
    depths: Sequence[float],
    targets: Sequence[Path],
    work: Path,
) -> None:
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed while it saved
    # A callback of the trainer's from the start: the floor's, which comes later, looks at what it
    # asks for.
    save = _SaveDepths()
    with warnings.catch_warnings():
        # The name that trl 1.16 sets too; transformers 5.23 calls it activation_checkpointing.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        trainer = make(work, save)
    steps = _steps(trainer, depths)
    trainer.args.max_steps = steps[-1]
    save.targets = dict(zip(steps, targets, strict=True))
    trainer.remove_callback(PrinterCallback)  # with disable_tqdm=True it would print every log
    finished = [target for target in targets if target.is_dir()]
    trainer.train(resume_from_checkpoint=str(finished[-1]) if finished else None)
    shutil.rmtree(work, ignore_errors=True)


def _steps(trainer: Any, depths: Sequence[float]) -> list[int]:
    """Optimizer steps after which each depth is reached."""
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, math.ceil(batches / trainer.args.gradient_accumulation_steps))
    steps = [max(1, round(depth * per_epoch)) for depth in depths]
    if len(set(steps)) < len(steps):
        raise ValueError(
            f"an epoch has {per_epoch} steps, so that depths {' '.join(map(str, depths))} are "
            f"after steps {' '.join(map(str, steps))}: choose depths further apart, or a smaller "
            "batch"
        )
    return steps


def _settings(training: DepthTraining, work: Path) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(work),
        "num_train_epochs": math.ceil(training.depths[-1]),
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
    """Asks for a checkpoint after chosen steps, and renames it once it is written."""

    def __init__(self) -> None:
        self.targets: dict[int, Path] = {}

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save if this step ends one of the depths."""
        target = self.targets.get(state.global_step)
        if target is not None and not target.is_dir():
            control.should_save = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The checkpoint is complete: rename it."""
        written = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        target = self.targets.get(state.global_step)
        if target is not None and not target.is_dir():
            written.rename(target)
            for shallower in [t for step, t in self.targets.items() if step < state.global_step]:
                strip_training_state(shallower)


def depth_of(checkpoint: str) -> tuple[str, float]:
    """``"sed-depth-1.9"`` -> ``("sed", 1.9)``; a name without depth is at depth 0."""
    match = re.fullmatch(r"(.+)-depth-(\d+(?:\.\d+)?)", checkpoint)
    if match is None:
        return checkpoint, 0
    depth = float(match[2])
    return match[1], int(depth) if depth.is_integer() else depth
