"""Group fine-tuning of a tiny model on ragged groups, whose every number can be found by hand."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from entropyfloor import GFTConfig, GFTTrainer
from tiny_models import tiny_model, tiny_tokenizer

COUNTS = {"num_expert": 1, "num_teacher": 3, "num_other": 1, "num_self": 4}


def ids_of(text: str) -> list[int]:
    """Tokens of the byte tokenizer."""
    return tiny_tokenizer()(text)["input_ids"]


def group_rows(count: int = 8) -> list[dict[str, Any]]:
    """Ragged groups; every fourth prompt says "flat": all its rewards are equal."""
    rows = []
    for i in range(count):
        responses = [{"source": "expert", "completion": f" {2 * i}."}]
        responses += [
            {"source": "teacher", "completion": f" {2 * i + j}!" * (1 + j)} for j in range(i % 4)
        ]
        if i % 3 == 1:
            responses.append({"source": "other", "completion": " ?" * (1 + i)})
        rows.append(
            {
                "prompt": f"{'flat ' if i % 4 == 3 else ''}{i}+{i}=",
                "responses": [{**response, "reward": None} for response in responses],
                "answer": 2 * i,
            }
        )
    return rows


def reward_of(prompt: str, ids: list[int]) -> float:
    """A multiple of 1/4, so that it is the same in every precision."""
    return 0.5 if prompt.startswith("flat") else (sum(ids) % 5) / 4


class Recorder:
    """A reward function that keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, list[int], float]]] = []
        self.__name__ = "recorder"

    def __call__(self, prompts, completions, completion_ids, answer, **_):
        assert len(answer) == len(prompts) == len(completions)
        rewards = [reward_of(p, list(i)) for p, i in zip(prompts, completion_ids, strict=True)]
        self.calls.append(
            [(p, list(i), r) for p, i, r in zip(prompts, completion_ids, rewards, strict=True)]
        )
        return rewards


def rollouts(prompts, trainer):
    """Policy samples that follow from prompt and place in the group: the same on any ranks."""
    place: dict[str, int] = {}
    completions = []
    for prompt in prompts:
        j = place[prompt] = place.get(prompt, -1) + 1
        step = trainer.state.global_step
        body = [5 + (7 * len(prompt) + 31 * j + 13 * k + step) % 250 for k in range(1 + j)]
        completions.append([*body, 1] if j % 2 else body)
    return {
        "prompt_ids": [ids_of(prompt) for prompt in prompts],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def settings(folder: Any, **changes: Any) -> GFTConfig:
    options: dict[str, Any] = {
        **COUNTS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 5,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **changes,
    }
    return GFTConfig(str(folder), **options)


def gft(
    folder: Any,
    *,
    rows: list[dict[str, Any]] | None = None,
    reward: Any = None,
    model: Any = None,
    trainer: dict[str, Any] | None = None,
    **changes: Any,
) -> GFTTrainer:
    return GFTTrainer(
        model or tiny_model(),
        reward or Recorder(),
        settings(folder, **changes),
        Dataset.from_list(group_rows() if rows is None else rows),
        processing_class=tiny_tokenizer(),
        **(trainer or {}),
    )


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]
