"""GRPO runs on a tiny random Llama, rewards that can be counted by hand, and demonstrations."""

import json
from pathlib import Path

from datasets import Dataset

from entropyfloor.rollouts.prompts import PromptSet
from tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ["1+1=", "2+3=", "say it:", "what is 7?", "a", "go on, then:", "x", "9-4="]


def prompt_rows(count=32):
    return Dataset.from_list([{"prompt": PROMPTS[i % len(PROMPTS)]} for i in range(count)])


class Recorder:
    """A reward that keeps what it gave: 1.0 where the first token's id is in ``share`` of bytes."""

    def __init__(self, share=0.25):
        self.share, self.calls = share, []
        self.__name__ = "first_byte"

    def __call__(self, prompts, completions, completion_ids, **_):
        rewards = [float(ids[0] % 100 < 100 * self.share) for ids in completion_ids]
        self.calls.append(list(zip(prompts, rewards, strict=True)))
        return rewards


OPTIONS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 1e-4,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}
DEMOS = PromptSet(
    tuple({"prompt": f"{a}+1=", "completion": str(a + 1) * (1 + a % 3)} for a in range(10))
)


def settings(folder, **changes):
    from entropyfloor.rl.dapo import dapo_config

    return dapo_config(folder, **{**OPTIONS, **changes})


def grpo(
    folder,
    *,
    rewards=None,
    callbacks=(),
    model=None,
    eval_dataset=None,
    peft_config=None,
    trainer=None,
    **changes,
):
    from trl import GRPOTrainer

    kind = trainer or GRPOTrainer
    return kind(
        model=model or tiny_model(),
        reward_funcs=rewards if rewards is not None else Recorder(),
        args=settings(folder, **changes),
        train_dataset=prompt_rows(),
        eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        peft_config=peft_config,
    )


def first_byte(completion_ids, **_):
    """A quarter of all first tokens pass."""
    return [float(ids[0] % 4 == 0) for ids in completion_ids]


def joint(folder, *, trainer=None, callbacks=(), reward=first_byte, extra=None, **changes):
    """A run on trl's own options, for trainers that take demonstrations (``extra``) as well."""
    from trl import GRPOConfig, GRPOTrainer

    short = {"max_completion_length": 4, "max_steps": 3, "learning_rate": 1e-3}
    return (trainer or GRPOTrainer)(
        model=tiny_model(),
        reward_funcs=reward,
        args=GRPOConfig(str(folder), **OPTIONS | short | changes),
        train_dataset=Dataset.from_list([{"prompt": f"{a}+2="} for a in range(32)]),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        **(extra or {}),
    )


def steps_of(folder):
    return [record for record in records(folder) if record["event"] == "step"]


def records(folder):
    lines = (Path(folder) / "collapse_monitor.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
