"""GRPO of one rung with trl's GRPOTrainer: checkpoints, and a curve per step.

What a folder holds, and when it is done:

    checkpoint-N/   model and tokenizer after N steps; while the run lasts, its training state too
    curve.json      one record per step (reward, entropy, ...), written when the run has ended

A killed run goes on from its last complete checkpoint and ends with the same weights. A run that a
callback stops early is done too; its curve ends where it was stopped.
"""

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from entropyfloor.echelon.sft_run import QuietBar, strip_training_state
from entropyfloor.echelon.sources import Sources
from entropyfloor.io import save_json
from entropyfloor.models.merging import merged_directory
from entropyfloor.rl.collapse_monitor import CollapseMonitor
from entropyfloor.rl.monitor_log import FILE_NAME as MONITOR_LOG
from entropyfloor.rl.monitor_log import read_log
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import reward_by_name

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

    training, further = data.recipe.grpo_options()
    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "max_steps": training.steps,
        "save_steps": training.save_every,
        "num_generations": training.group_size,
        "per_device_train_batch_size": training.group_size * training.prompts_per_step,
        "max_completion_length": data.tokens(after_rl=False),
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "logging_steps": 1,
        "report_to": "none",
        "seed": data.seed,
        "shuffle_dataset": False,  # see _in_order
    }
    # GRPO starts an adapter of its own on a whole model, as the rank-inversion paper does.
    start = merged_directory(weights, folder / "start")
    monitors = [] if training.monitor is None else [CollapseMonitor(training.monitor)]
    rows = PromptSet(data.rl, "prompts for RL").dataset()
    return PromptRowsTrainer(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        reward_funcs=reward_by_name(data.reward),
        args=dapo_config(folder, **{**settings, **further}),
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
