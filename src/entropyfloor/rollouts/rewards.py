"""Rewards by name, in trl's signature.

A reward is called as ``reward(prompts=..., completions=..., completion_ids=..., **columns)`` with
one entry per rollout in every argument, and returns one number (or None: does not apply) per
rollout. ``columns`` are the prompt set's other columns. As in trl a completion is a string, or for
a conversational prompt a list of one assistant message.

    exact_match        1.0 where the completion's final answer equals that of column ``answer``
    reasoning_gym      the task's own verifier on the row's ``entry``
    unit_tests         1.0 where generated Python passes all of its column ``tests``, sandboxed
    math               trl's accuracy reward: math-verify on column ``solution``, else ``answer``
    module:function    anything importable, the current directory included
"""

import importlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.answers import completion_text, final_answer, marked_answer
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.unit_tests import NEEDED as _NEEDED_TESTS
from entropyfloor.rollouts.unit_tests import tests_source, unit_tests

RewardFunction = Callable[..., Any]


def exact_match(
    completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any
) -> list[float]:
    """Score 1.0 where :func:`final_answer` equals that of the column ``answer``, else 0.0."""
    if answer is None:
        raise ValueError(_NEEDED[exact_match])
    return [
        float(final_answer(completion_text(completion)) == final_answer(str(reference)))
        for completion, reference in zip(completions, answer, strict=True)
    ]


def reasoning_gym(
    completions: Sequence[Any], entry: Sequence[Any] | None = None, **_: Any
) -> list[float]:
    """Score by the task's verifier, in [0, 1]; 1.0 is a fully correct answer.

    It is given :func:`marked_answer` of the completion, or the whole completion, stripped, if it
    marks none. An answer on which the verifier raises scores 0.0. The row's ``entry`` is the
    reasoning-gym entry (or its JSON); its metadata name the task.
    """
    if entry is None:
        raise ValueError(_NEEDED[reasoning_gym])
    from entropyfloor.rollouts.reasoning_gym_prompts import reasoning_gym_dataset

    verifiers: dict[str, Any] = {}
    scores = []
    for completion, row in zip(completions, entry, strict=True):
        item = json.loads(row) if isinstance(row, str) else row
        task = (item.get("metadata") or {}).get("source_dataset")
        if task is None:
            raise ValueError(
                "a reasoning-gym entry names its task in metadata.source_dataset; one does not"
            )
        if task not in verifiers:
            verifiers[task] = reasoning_gym_dataset(task, {}).score_answer
        text = completion_text(completion)
        marked = marked_answer(text)
        try:
            score = float(verifiers[task](text.strip() if marked is None else marked, item))
        except Exception:  # some verifiers raise on text that they cannot parse: not a right answer
            score = 0.0
        scores.append(score)
    return scores


def math_accuracy(
    completions: Sequence[Any],
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    **_: Any,
) -> list[float | None]:
    r"""Score by trl's ``accuracy_reward``: 1.0 where math-verify finds both to be equal, else 0.0.

    A completion must mark its answer (``\boxed{...}``); a reference that math-verify cannot parse
    gives None. The reference is column ``solution``, as in trl, else
    ``answer``, of which :func:`marked_answer` is taken where it marks one (GSM8K's ``#### 42``).
    """
    if solution is None and answer is None:
        raise ValueError(_NEEDED[math_accuracy])
    check_math_verify()
    from trl.rewards import accuracy_reward

    references = []
    for index in range(len(completions)):
        given = None if solution is None else solution[index]
        if given is None:
            text = str(answer[index]) if answer is not None else ""
            marked = marked_answer(text)
            given = text if marked is None else marked
        references.append(str(given))
    messages = [[{"role": "assistant", "content": completion_text(c)}] for c in completions]
    scores = accuracy_reward(completions=messages, solution=references)
    return [None if score is None else float(score) for score in scores]


def check_math_verify() -> None:
    """Raise ValueError unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            "the reward math needs math-verify, which is not installed; "
            "pip install 'entropyfloor[math]', or use exact_match"
        )


NAMED_REWARDS: dict[str, RewardFunction] = {
    "exact_match": exact_match,
    "math": math_accuracy,
    "reasoning_gym": reasoning_gym,
    "unit_tests": unit_tests,
}


# What a reward cannot do without: the column, and how to get it.
_NEEDED: dict[RewardFunction, str] = {
    math_accuracy: "the reward math needs a column 'solution' or 'answer' in the prompt set; add "
    "it or use another reward",
    exact_match: "the reward exact_match needs a column 'answer' in the prompt set; add it or "
    "use another reward",
    reasoning_gym: "the reward reasoning_gym needs a column 'entry' (question, answer, metadata) "
    "in the prompt "
    "set; use the prompts reasoning_gym:TASK?size=24&seed=7, which have it",
    unit_tests: _NEEDED_TESTS,
}
_NEEDED_COLUMNS: dict[RewardFunction, tuple[str, ...]] = {
    exact_match: ("answer",),
    math_accuracy: ("solution", "answer"),
    reasoning_gym: ("entry",),
    unit_tests: ("tests", "test"),
}


def check_reward_columns(reward: RewardFunction, prompts: PromptSet) -> None:
    """Raise ValueError if a row lacks what a reward of ours needs."""
    reward = inspect.unwrap(reward)  # unit_tests in a sandbox of the user's
    columns = _NEEDED_COLUMNS.get(reward)
    if columns is None:
        return
    if reward is math_accuracy:
        check_math_verify()
    for index, row in enumerate(prompts.rows):
        if all(row.get(column) is None for column in columns):
            raise ValueError(f"{_NEEDED[reward]} ({prompts.source}, row {index} has none)")
        if reward is unit_tests:
            tests = next(row[column] for column in columns if row.get(column) is not None)
            tests_source(tests, where=f"{prompts.source}, row {index}")


def reward_by_name(name: str) -> RewardFunction:
    """Find the reward of a name, or the function that ``module:function`` points to.

    Raises:
        ValueError: unknown name, or a module or function that cannot be imported.

    """
    if name in NAMED_REWARDS:
        return NAMED_REWARDS[name]
    allowed = f"give {', '.join(NAMED_REWARDS)} or module:function"
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise ValueError(f"unknown reward {name!r}; {allowed}")
    here = str(Path.cwd())
    if (
        here not in sys.path
    ):  # a console script does not search the current directory; python -m does
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"reward {name!r}: cannot import {module_name!r} ({error}); {allowed}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"reward {name!r}: {module_name} has no function {function_name!r}")
    return function


def reward_name(reward: RewardFunction | str) -> str:
    """How a report names a reward."""
    return reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)


def call_reward(
    reward: RewardFunction,
    *,
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[list[int]],
    columns: dict[str, list[Any]],
) -> list[float | None]:
    """Call a reward as trl does; check that it gives a finite number or None per rollout."""
    name = reward_name(reward)
    returned = reward(
        prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
    )
    try:
        values = list(returned)
    except TypeError as error:
        raise ValueError(
            f"reward {name} returned a {type(returned).__name__}; it must return a list with one "
            "number per completion (asynchronous rewards are not supported)"
        ) from error
    if len(values) != len(completions):
        raise ValueError(
            f"reward {name} returned {len(values)} values for {len(completions)} completions; "
            "it must return one per completion"
        )
    rewards: list[float | None] = []
    for index, value in enumerate(values):
        number = None if value is None else _as_float(value, name, index)
        if number is not None and not math.isfinite(number):
            raise ValueError(
                f"reward {name} returned {number} for completion {index}; return a finite number, "
                "or None where the reward does not apply"
            )
        rewards.append(number)
    return rewards


def _as_float(value: Any, name: str, index: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward {name} returned {value!r} for completion {index}; return a number or None"
        ) from error
