"""GRPO of a small model on a CPU with trl's GRPOTrainer: checkpoints, and a curve per step.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from entropyfloor.echelon.depths import TRAINING_STATE
from entropyfloor.io import save_json
from entropyfloor.rl.monitor_log import read_log

_CURVE = "curve.json"


@dataclass(frozen=True)
class GRPOTraining:
    """How a small model is trained with GRPO: in its DAPO variant, on policy, without KL.

    Attributes:
        steps: optimizer steps; each has rollouts of its own.
        save_every: steps between checkpoints.
        group_size: rollouts per prompt, g.
        prompts_per_step: prompts whose groups make up a step.
        learning_rate: constant, of AdamW.

    """

    steps: int = 150
    save_every: int = 50
    group_size: int = 8
    prompts_per_step: int = 32
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "prompts_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, as advantages are relative to the group; got "
                f"{self.group_size}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")


@dataclass(frozen=True)
class GRPORun:
    """What a run left.

    Attributes:
        checkpoints: step -> model directory, ascending.
        curve: one record per step, as logged: ``step``, ``reward``, ``entropy`` (nats, of the
            rollouts' next-token distributions), ``frac_reward_zero_std`` and trl's others.
        stage_two: what a ``CollapseMonitor`` among the callbacks decided (``verdict``,
            ``relative_drop``, ``message``, ...); None without one.

    """

    checkpoints: dict[int, Path]
    curve: tuple[dict[str, Any], ...]
    stage_two: dict[str, Any] | None


def train_grpo(
    model_directory: str | Path,
    dataset: Any,
    *,
    reward: Any,
    max_new_tokens: int,
    training: GRPOTraining,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
    peft_config: Any = None,
) -> GRPORun:
    """Train, or find what was trained.

    Args:
        model_directory: where to start from; fp32 weights are trained.
        dataset: a ``datasets.Dataset`` with ``prompt`` and what the reward needs.
        reward: in trl's signature.
        max_new_tokens: length limit of a rollout.
        training: hyper-parameters.
        seed: of the order of prompts and of sampling.
        folder: see the module's docstring; made if missing.
        callbacks: handed to the trainer, such as a collapse monitor.
        progress: show a progress bar on standard error.
        options: further fields of ``trl.GRPOConfig``; they come before what is set here.
        peft_config: train an adapter.

    Raises:
        ValueError: fewer prompts than a step needs.

    """
    if len(dataset) < training.prompts_per_step:
        raise ValueError(
            f"a step takes {training.prompts_per_step} prompts and there are {len(dataset)}: give "
            "more, or lower prompts_per_step"
        )
    if not (folder / _CURVE).is_file():
        trainer = _trainer(
            model_directory,
            dataset,
            reward,
            max_new_tokens,
            training,
            seed,
            folder,
            callbacks,
            options or {},
            peft_config,
        )
        # trl's bar prints every log beside itself; they all go to the curve here.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if progress:
            trainer.add_callback(QuietBar())
        found = _complete_checkpoints(folder)
        trainer.train(resume_from_checkpoint=str(found[max(found)]) if found else None)
        steps = [record for record in trainer.state.log_history if "reward" in record]
        save_json(folder / _CURVE, steps)
    checkpoints = _complete_checkpoints(folder)
    for directory in checkpoints.values():
        for file in TRAINING_STATE:
            (directory / file).unlink(missing_ok=True)
    curve = json.loads((folder / _CURVE).read_text(encoding="utf-8"))
    return GRPORun(checkpoints, tuple(curve), _stage_two(folder))


def _trainer(
    model_directory: str | Path,
    dataset: Any,
    reward: Any,
    max_new_tokens: int,
    training: GRPOTraining,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    options: Mapping[str, Any],
    peft_config: Any,
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropyfloor.rl.dapo import dapo_config
    from entropyfloor.rl.prompt_rows import PromptRowsTrainer

    settings: dict[str, Any] = {
        "max_steps": training.steps,
        "save_steps": training.save_every,
        "num_generations": training.group_size,
        "per_device_train_batch_size": training.group_size * training.prompts_per_step,
        "max_completion_length": max_new_tokens,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,  # rows are ten tokens long
        "use_cpu": True,  # 0.3 M parameters gain nothing on a GPU; the CPU repeats its numbers
        "bf16": False,
        "logging_steps": 1,
        "report_to": "none",
        "seed": seed,
        "shuffle_dataset": False,  # see _in_order
    }
    config = dapo_config(folder, **{**settings, **options})
    return PromptRowsTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=_in_order(dataset, training.steps * training.prompts_per_step, seed),
        processing_class=AutoTokenizer.from_pretrained(model_directory),
        callbacks=list(callbacks),
        peft_config=peft_config,
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


class QuietBar(ProgressCallback):
    """The trainer's progress bar, without every log beside it."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing."""


def _stage_two(folder: Path) -> dict[str, Any] | None:
    try:
        records = read_log(folder)
    except FileNotFoundError:
        return None
    return next((record for record in records if record["event"] == "verdict"), None)


def _complete_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> directory, ascending; deletes one that a killed run has begun to write."""
    found = {}
    for child in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", child.name)
        if match is None:
            continue
        try:  # the trainer writes its state last
            json.loads((child / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(child)
        else:
            found[int(match[1])] = child
    return dict(sorted(found.items()))
