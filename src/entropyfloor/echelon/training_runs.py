"""The trainings of an echelon, which go on where they were stopped: SFT or GFT, and GRPO of a rung.

One run of SFT or GFT leaves a checkpoint at each depth. A depth is a number of epochs; of 1.9
epochs with ten steps each, 19 steps are trained. For GFT, where a prompt comes with a group of
responses, a depth counts responses: as many are trained on as SFT would train on rows in so many
epochs, in as many steps, so that rungs of both can be compared.

Checkpoints are ``LOSS-depth-D`` directories. The trainer writes one under another name; it gets its
own by a rename once it is complete, so a directory of that name is a finished depth. While the run
lasts, the deepest carries optimizer and scheduler state, from which a killed run goes on; when its
last depth is done only model and tokenizer stay.

The learning rate is constant. A depth is then what a run of that many epochs would have ended with,
and the depths of one run can be compared.

A folder of GRPO, with trl's GRPOTrainer, holds

    checkpoint-N/   model and tokenizer after N steps; while the run lasts, its training state too
    curve.json      one record per step (reward, entropy, ...), written when the run has ended

A killed run goes on from its last complete checkpoint and ends with the same weights. A run that a
callback stops early is done too; its curve ends where it was stopped.
"""

import json
import math
import random
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from entropyfloor.echelon.sources import Sources
from entropyfloor.io import save_json
from entropyfloor.models.merging import merged_directory
from entropyfloor.rl.collapse_monitor import CollapseMonitor
from entropyfloor.rl.monitor_memory import FILE_NAME as MONITOR_LOG
from entropyfloor.rl.monitor_memory import read_log
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rewards import reward_by_name

# What only continuing needs, beside the weights: two thirds of a checkpoint's size, and pickles.
TRAINING_STATE = (
    "optimizer.pt",
    "floor_reference.safetensors",
    "floor_reference.json",
    "loss_reference.safetensors",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
    "training_args.bin",
)
Make = Callable[[Path, TrainerCallback], Any]


def train_loss(
    start: Path | str,
    loss: str,
    data: Sources,
    folder: Path,
    *,
    groups: Path | None = None,
    progress: bool = True,
) -> list[Path]:
    """Train one loss with its trainer; return its checkpoints, shallowest first.

    Args:
        start: directory or hub id of the model; fp32 weights are trained.
        loss: its name in the recipe.
        data: of the seed; the recipe's depths and options come with it.
        folder: receives the checkpoints; made if missing. Finished ones are kept.
        groups: for GFT: a file of ``build_response_groups``; None: the demonstrations alone.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: two depths that are the same number of steps.

    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropyfloor import GFTConfig, GFTTrainer, SEDConfig, SEDTrainer

    recipe, gft, size = data.recipe, data.recipe.is_gft(loss), 1.0
    options, rows = recipe.sft_options(loss), data.rows
    loading = options.pop("model_init_kwargs", None) or {}
    if gft:
        rows = _expert_rows(data) if groups is None else load_prompts(groups).rows
        size = mean_group_size(rows, options)
        # As many responses a step as SFT has rows, so that equal depths are equal steps too.
        prompts = max(1, round(options["per_device_train_batch_size"] / size))
        options |= {"per_device_train_batch_size": prompts}
        options.setdefault("max_completion_length", data.tokens(after_rl=False))

    def make(work: Path, save: TrainerCallback) -> Any:
        settings = {**_settings(data, work, progress), **options}
        # fp32 whatever the checkpoint's dtype: small updates vanish in the rounding of bf16.
        model = AutoModelForCausalLM.from_pretrained(start, **{**loading, "dtype": torch.float32})
        parts = {
            "processing_class": AutoTokenizer.from_pretrained(start),
            "callbacks": [save],
            "peft_config": recipe.lora_config(),
        }
        if options.get("entropy_floor") is not None:
            parts["probe_prompts"] = data.probe_prompts
        if gft:
            reward, groups_set = reward_by_name(data.reward), PromptSet(tuple(rows), "groups")
            return GFTTrainer(model, reward, GFTConfig(**settings), groups_set.dataset(), **parts)
        if validation := data.validation_of(loss):
            parts["eval_dataset"] = Dataset.from_list([dict(row) for row in validation])
        dataset = Dataset.from_list([dict(row) for row in rows])
        return SEDTrainer(model, args=SEDConfig(**settings), train_dataset=dataset, **parts)

    targets = [folder / f"{loss}-depth-{depth:g}" for depth in recipe.depths]
    if not targets[-1].is_dir():
        _train(make, [depth * (1 / size) for depth in recipe.depths], targets, loss)
    for target in targets:
        strip_training_state(target)
    return targets


def mean_group_size(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> float:
    """Mean responses per prompt and step of GFT under these fields of ``GFTConfig``."""
    from entropyfloor import GFTConfig

    config = GFTConfig("unused", **{**options, "use_cpu": True, "bf16": False})
    responses = 0
    for row in rows:
        named = [response["source"] for response in row["responses"]]
        limits = config.response_counts().items()
        responses += sum(min(named.count(source), most) for source, most in limits)
    return responses / len(rows) + config.num_self


def strip_training_state(checkpoint: Path) -> None:
    """Leave model and tokenizer."""
    for file in TRAINING_STATE:
        (checkpoint / file).unlink(missing_ok=True)


class QuietBar(ProgressCallback):
    """The trainer's progress bar, without every log beside it."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing."""


def _train(make: Make, epochs: Sequence[float], targets: Sequence[Path], name: str) -> None:
    """Go on from the deepest target that is there; ``make`` returns a trainer with the callback."""
    work = targets[-1].with_name(f".unfinished-{targets[-1].name}")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed while it saved
    # A callback of the trainer's from the start: the floor's, which comes later, looks at what it
    # asks for.
    save = _SaveDepths()
    with warnings.catch_warnings():
        # The name that trl 1.16 sets too; transformers 5.23 calls it activation_checkpointing.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        trainer = make(work, save)
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, math.ceil(batches / trainer.args.gradient_accumulation_steps))
    steps = [max(1, round(number * per_epoch)) for number in epochs]
    if len(set(steps)) < len(steps):
        raise ValueError(
            f"{name}: an epoch has {per_epoch} steps, so that its depths are after steps "
            f"{' '.join(map(str, steps))}: choose depths further apart, or a smaller batch"
        )
    trainer.args.max_steps = steps[-1]
    save.targets = dict(zip(steps, targets, strict=True))
    trainer.remove_callback(PrinterCallback)  # with disable_tqdm=True it would print every log
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(QuietBar())
    finished = [target for target in targets if target.is_dir()]
    trainer.train(resume_from_checkpoint=str(finished[-1]) if finished else None)
    shutil.rmtree(work, ignore_errors=True)


def _settings(data: Sources, work: Path, progress: bool) -> dict[str, Any]:
    """Fields of the trainer's configuration that every run has; the recipe's go before them."""
    import torch

    return {
        "output_dir": str(work),
        "num_train_epochs": math.ceil(data.recipe.depths[-1]),
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,  # recomputing costs a third more time; rows are short
        "save_strategy": "no",  # _SaveDepths decides
        "logging_strategy": "epoch",
        "report_to": "none",
        "seed": data.seed,
        "disable_tqdm": not progress,
    }


def _expert_rows(data: Sources) -> tuple[Mapping[str, Any], ...]:
    """The demonstrations as groups of one; the trainer scores them."""
    rows = []
    for row in data.demonstrations:
        others = {name: value for name, value in row.items() if name != "completion"}
        expert = {"source": "expert", "completion": row["completion"], "reward": None}
        rows.append({**others, "responses": [expert]})
    return tuple(rows)


class _SaveDepths(TrainerCallback):
    """Asks for a checkpoint after chosen steps, and renames it once it is written."""

    def __init__(self) -> None:
        self.targets: dict[int, Path] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save if this step ends one of the depths."""
        target = self.targets.get(state.global_step)
        if target is not None and not target.is_dir():
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The checkpoint is complete: rename it."""
        written = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        target = self.targets.get(state.global_step)
        if target is not None and not target.is_dir():
            written.rename(target)
            for shallower in [t for step, t in self.targets.items() if step < state.global_step]:
                strip_training_state(shallower)


_CURVE = "curve.json"


def train_grpo(
    weights: Path,
    data: Sources,
    folder: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
) -> dict[int, Path]:
    """Train a rung, or find what was trained.

    Args:
        weights: of the rung; an adapter is merged first, into ``start/``.
        data: of the seed; the recipe's ``grpo`` comes with it.
        folder: see the module's docstring; made if missing.
        callbacks: handed to the trainer, beside the recipe's monitor.
        progress: show a progress bar on standard error.

    Returns:
        step -> checkpoint, ascending.

    """
    if not (folder / _CURVE).is_file():
        trainer = _trainer(weights, data, folder, callbacks)
        # trl's bar prints every log beside itself; they all go to the curve here.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if progress:
            trainer.add_callback(QuietBar())
        complete = _complete_checkpoints(folder)
        last = str(complete[max(complete)]) if complete else None
        trainer.train(resume_from_checkpoint=last)
        steps = [record for record in trainer.state.log_history if "reward" in record]
        save_json(folder / _CURVE, steps)
    checkpoints = _complete_checkpoints(folder)
    for directory in checkpoints.values():
        strip_training_state(directory)
    return checkpoints


def monitor_decision(folder: Path) -> dict[str, Any] | None:
    """What the run's collapse monitor decided; None without one."""
    if not (folder / MONITOR_LOG).is_file():
        return None
    return next((record for record in read_log(folder) if record["event"] == "verdict"), None)


def _trainer(
    weights: Path, data: Sources, folder: Path, callbacks: Sequence[TrainerCallback]
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropyfloor.rl.dapo import dapo_config
    from entropyfloor.rl.prompt_rows import PromptRowsTrainer

    training, _ = data.recipe.grpo_options()
    settings = data.recipe.grpo_config(on_gpu=torch.cuda.is_available())
    settings |= {"max_completion_length": data.tokens(after_rl=False), "seed": data.seed}
    # GRPO starts an adapter of its own on a whole model, as the rank-inversion paper does.
    start = merged_directory(weights, folder / "start")
    monitors = [] if training.monitor is None else [CollapseMonitor(training.monitor)]
    rows = PromptSet(data.rl, "prompts for RL").dataset()
    return PromptRowsTrainer(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        reward_funcs=reward_by_name(data.reward),
        args=dapo_config(folder, **settings),
        train_dataset=_in_order(rows, training.steps * training.prompts_per_step, data.seed),
        processing_class=AutoTokenizer.from_pretrained(start),
        callbacks=[*monitors, *callbacks],
        peft_config=data.recipe.lora_config(),
    )


def _in_order(dataset: Any, count: int, seed: int) -> Any:
    """The rows of a whole run, shuffled anew each time that all have been seen.

    trl 1.16 shuffles by itself, but a resumed run begins with the first epoch's order again. A run
    that is one epoch long has only steps to skip, and goes on exactly where it was.
    """
    rng = random.Random(f"{seed}:rl prompts")
    indices: list[int] = []
    while len(indices) < count:
        indices += rng.sample(range(len(dataset)), len(dataset))
    return dataset.select(indices[:count])


def _complete_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> directory, ascending; deletes one that a killed run has begun to write."""
    complete = {}
    for child in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", child.name)
        if match is None:
            continue
        try:  # the trainer writes its state last
            json.loads((child / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(child)
        else:
            complete[int(match[1])] = child
    return dict(sorted(complete.items()))
