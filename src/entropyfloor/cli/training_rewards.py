"""Rewards that a training verb names, and rows that have the columns they need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropyfloor.cli.launching import Arguments
from entropyfloor.cli.training_inputs import load_rows, split_of

if TYPE_CHECKING:
    from entropyfloor.rollouts.prompts import PromptSet


def chosen_rewards(script: Any) -> list[Any]:
    """Ours, trl's by name or dotted path, and a reward model, in this order."""
    from importlib import import_module

    from trl import rewards as of_trl

    from entropyfloor.rollouts.rewards import reward_by_name

    found = [reward_by_name(name) for name in script.reward or []]
    for name in script.reward_funcs or []:
        if name == "get_soft_overlong_punishment":  # trl grpo's values
            found.append(
                of_trl.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
            )
        elif name in {"accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"}:
            found.append(getattr(of_trl, name))
        elif "." in name:
            module, _, function = name.rpartition(".")
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
            try:
                found.append(getattr(import_module(module), function))
            except (ImportError, AttributeError) as error:
                raise ValueError(f"--reward_funcs {name} cannot be imported: {error}") from error
        else:
            raise ValueError(
                f"--reward_funcs {name} is neither one of trl's nor a dotted path; for "
                "exact_match, math or reasoning_gym use --reward"
            )
    if script.reward_model_name_or_path:
        found.append(script.reward_model_name_or_path)
    if not found:
        raise ValueError(
            "no reward: give --reward (exact_match, math, reasoning_gym or module:function), "
            "--reward_funcs or --reward_model_name_or_path"
        )
    return found


def dataset_rows(arguments: Arguments, rewards: Sequence[Any]) -> tuple[Any, Any]:
    """What --dataset_name or a mixture names, to train and to evaluate on; None without."""
    from entropyfloor.rollouts.prompts import PromptSet
    from entropyfloor.rollouts.rewards import check_reward_columns

    script, training = arguments.script, arguments.training
    dataset = load_rows(script, arguments.mixture)
    train = split_of(dataset, script.dataset_train_split, "train")
    test = None
    if training.eval_strategy != "no":
        test = split_of(dataset, script.dataset_test_split, "test")
    name = str(script.dataset_name or "the mixture")
    if hasattr(train, "__len__"):
        check_columns(rewards, PromptSet(tuple(train), name))
    else:  # streamed: its first row says which columns there are
        for reward in filter(callable, rewards):
            check_reward_columns(reward, PromptSet((next(iter(train)),), name))
    return train, test


def check_only_rows(arguments: Arguments, flag: str, *, instead: str) -> None:
    """Raise ValueError if rows are named beside ``flag``, or a test split that it has not."""
    if arguments.script.dataset_name or arguments.mixture.datasets:
        raise ValueError(f"{flag} and --dataset_name (or `datasets:`) both name rows; give one")
    if arguments.training.eval_strategy != "no":
        raise ValueError(
            f"{flag} has no test split for --eval_strategy; {instead}, or give the rows as "
            "--dataset_name"
        )


def check_columns(rewards: Sequence[Any], prompts: PromptSet) -> None:
    """Raise ValueError if a row lacks what a reward of ours needs; score each row's reference."""
    from entropyfloor.rollouts.references import check_references

    for reward in rewards:
        if callable(reward):
            check_references(reward, prompts)


def as_dataset(prompts: PromptSet, *, keep: Sequence[str] = ("prompt",)) -> Any:
    """A ``datasets.Dataset`` of a prompt set; nested columns as JSON, which our rewards read.

    Arrow would give every row the keys of all rows. Columns to ``keep`` stay as they are.
    """
    import json

    from datasets import Dataset

    names = sorted({name for row in prompts.rows for name in row})
    nested = {
        name
        for name in names
        if name not in keep and any(isinstance(row.get(name), dict | list) for row in prompts.rows)
    }
    rows = [
        {
            name: json.dumps(row.get(name), ensure_ascii=False, default=str)
            if name in nested
            else row.get(name)
            for name in names
        }
        for row in prompts.rows
    ]
    return Dataset.from_list(rows)
