"""What the verbs that train by rewards share: rewards, the monitor, rows with their columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl.scripts.grpo import GRPOScriptArguments

from entropyfloor.cli.training_inputs import (
    Arguments,
    chat_options,
    check_embedded,
    load_rows,
    mapped_rows,
    split_of,
    training_tokenizer,
)
from entropyfloor.rollouts.options import ChatOptions, flag

if TYPE_CHECKING:
    from entropyfloor.rollouts.prompts import PromptSet

_POLICIES = {"warn": "warn", "stop": "stop", "restore": "stop-and-restore"}


def monitor_field(default: str) -> str:
    """The flag --monitor, with a command's own default."""
    chosen: str = flag(
        default,
        "When the entropy collapses: warn, stop, restore (stop with the last checkpoint from "
        "before) or off.",
        choices=[*_POLICIES, "off"],
    )
    return chosen


@dataclass
class RewardArguments(ChatOptions, GRPOScriptArguments):
    """trl's script arguments, our rewards, and what a monitor compares."""

    reward: list[str] | None = flag(
        None, "exact_match, math, reasoning_gym, ... or module:function; several add."
    )
    monitor: str = monitor_field("stop")
    monitor_tau_2: float = flag(0.5, "Relative entropy drop that is a collapse.")
    monitor_early_step: int | None = flag(None, "First step compared (default: 10 of 400, scaled).")
    monitor_late_step: int | None = flag(
        None, "Second step compared (default: 150 of 400, scaled)."
    )
    monitor_window: int = flag(1, "Steps averaged for each of the two.")


def monitor_of(script: Any, *, threshold: float, reward: str | None = None) -> list[Any]:
    """The monitors that the flags ask for: one or none.

    Args:
        script: `RewardArguments`.
        threshold: a rollout passes if its reward is at least this.
        reward: name of the reward function that says so; default: the first.

    """
    if script.monitor == "off":
        return []
    from entropyfloor.rl.collapse_monitor import CollapseMonitor

    monitor = CollapseMonitor(
        _POLICIES[script.monitor],
        tau_2=script.monitor_tau_2,
        early_step=script.monitor_early_step,
        late_step=script.monitor_late_step,
        window=script.monitor_window,
        success_threshold=threshold,
        success_reward=reward,
    )
    return [monitor]


def say_verdict(monitors: Sequence[Any], say: Any) -> None:
    """A monitor's sentence at the end of a run, if it has one."""
    for monitor in monitors:
        if monitor.message:
            say(f"Monitor: {monitor.message}")


def chosen_rewards(script: Any) -> list[Any]:
    """Ours, trl's by name or dotted path, and a reward model, in this order."""
    from importlib import import_module

    from trl import rewards as of_trl

    from entropyfloor.rollouts.rewards import reward_by_name

    rewards = [reward_by_name(name) for name in script.reward or []]
    for name in script.reward_funcs or []:
        if name == "get_soft_overlong_punishment":  # trl grpo's values
            rewards.append(
                of_trl.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
            )
        elif name in {"accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"}:
            rewards.append(getattr(of_trl, name))
        elif "." in name:
            module, _, function = name.rpartition(".")
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
            try:
                rewards.append(getattr(import_module(module), function))
            except (ImportError, AttributeError) as error:
                raise ValueError(f"--reward_funcs {name} cannot be imported: {error}") from error
        else:
            raise ValueError(
                f"--reward_funcs {name} is neither one of trl's nor a dotted path; for "
                "exact_match, math or reasoning_gym use --reward"
            )
    if script.reward_model_name_or_path:
        rewards.append(script.reward_model_name_or_path)
    if not rewards:
        raise ValueError(
            "no reward: give --reward (exact_match, math, reasoning_gym or module:function), "
            "--reward_funcs or --reward_model_name_or_path"
        )
    return rewards


def training_rows(
    arguments: Arguments, rewards: Sequence[Any], *, spec: str | None, flag: str, instead: str
) -> tuple[Any, Any]:
    """Rows to train and to evaluate on; None without the latter.

    Args:
        arguments: --dataset_name or a mixture, unless ``spec`` names the rows; how they are
            rendered.
        rewards: those of ours find their columns, or ValueError is raised.
        spec: prompts as ``load_prompts`` takes them.
        flag: of ``spec``, for messages.
        instead: what to do instead of evaluating on ``spec``.

    """
    from entropyfloor.rollouts.prompts import PromptSet, load_prompts
    from entropyfloor.rollouts.reading import is_json
    from entropyfloor.rollouts.rendering import encode_prompts
    from entropyfloor.rollouts.rewards import check_reward_columns

    script, training = arguments.script, arguments.training
    options = chat_options(script, training.chat_template_kwargs)
    # Read as every other verb reads it: Arrow would hand a reward other objects.
    named = str(script.dataset_name or "")
    if spec is not None:
        check_only_rows(arguments, flag, instead=instead)
    elif is_json(named) and Path(named).is_file() and not script.dataset_streaming:
        spec = named
    if spec is not None:
        prompts = load_prompts(spec).with_chat_options(**options)
        check_columns(rewards, prompts)
        model = str(arguments.model.model_name_or_path)
        encoded = encode_prompts(prompts, training_tokenizer(arguments), where=model)
        check_embedded(encoded, model, prompts.source)
        splits: Any = {"train": prompts.dataset()}
        if spec != named:
            return splits["train"], None
    else:
        splits = load_rows(script, arguments.mixture)
    train = split_of(splits, script.dataset_train_split, "train")
    test = None
    if training.eval_strategy != "no":
        test = split_of(splits, script.dataset_test_split, "test")
    if spec is None:
        name = named or "the mixture"
        if hasattr(train, "__len__"):
            check_columns(rewards, PromptSet(tuple(train), name))
        else:  # streamed: its first row says which columns there are
            first = PromptSet(tuple(islice(train, 1)), name)
            for reward in filter(callable, rewards):
                check_reward_columns(reward, first)
        if test is not None and hasattr(test, "__len__"):
            PromptSet(tuple(test), f"{name}, split 'test'")
        train, test = (mapped_rows(rows, options) for rows in (train, test))
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
    from entropyfloor.rollouts.rewards import check_references

    for reward in rewards:
        if callable(reward):
            check_references(reward, prompts)
