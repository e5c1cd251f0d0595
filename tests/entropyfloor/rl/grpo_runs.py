"""A GRPOTrainer on a tiny random Llama, and rewards that can be counted by hand."""

import json
from pathlib import Path

from datasets import Dataset

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


def settings(folder, **changes):
    from entropyfloor.rl.dapo import dapo_config

    options = {
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
        **changes,
    }
    return dapo_config(folder, **options)


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


def steps_of(folder):
    return [record for record in records(folder) if record["event"] == "step"]


def records(folder):
    lines = (Path(folder) / "collapse_monitor.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
