"""Rewards by name, in trl's signature.

A reward is called as ``reward(prompts=..., completions=..., completion_ids=..., **columns)`` with
one entry per rollout in every argument, and returns one number (or None: does not apply) per
rollout. ``columns`` are the prompt set's other columns. As in trl a completion is a string, or for
a conversational prompt a list of one assistant message.

    exact_match        1.0 where the completion's final answer equals that of column ``answer``
    reasoning_gym      the task's own verifier on the row's ``entry``
    unit_tests         1.0 where generated Python passes all of its column ``tests``, sandboxed
    math               math-verify on the answer and column ``solution``, else ``answer``
    module:function    anything importable, the current directory included

Before anything is spent each row's own reference is scored. One that its reward cannot read, or
that fails its own tests or verifier, would be blamed on the model: the rewards of such rows are
None, so that pass rates are over the others, and `check_references` names them.
"""

import importlib
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.answers import (
    after_thinking,
    answer_readings,
    completion_text,
    final_answer,
    marked_answer,
)
from entropyfloor.rollouts.math_accuracy import NEEDED as MATH_NEEDED
from entropyfloor.rollouts.math_accuracy import check_math_verify, math_accuracy, math_reference
from entropyfloor.rollouts.prompts import Prompt, PromptSet, reward_columns
from entropyfloor.rollouts.reasoning_gym_prompts import gym_entry
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.unit_tests import NEEDED as TESTS_NEEDED
from entropyfloor.rollouts.unit_tests import (
    REFERENCE_COLUMNS,
    reference_solution,
    row_tests,
    unit_tests,
)

RewardFunction = Callable[..., Any]
_NAMED_ROWS = 20  # of those whose reference fails

EXACT_MATCH_NEEDED = (
    "the reward exact_match needs a column 'answer' in the prompt set; add it or use another reward"
)
REASONING_GYM_NEEDED = (
    "the reward reasoning_gym needs a column 'entry' (question, answer, metadata) in the prompt "
    "set; use the prompts reasoning_gym:TASK?size=24&seed=7, which have it"
)


def exact_match(
    completions: Sequence[Any], answer: Sequence[Any] | None = None, **_: Any
) -> list[float | None]:
    """Score 1.0 where the final answer equals that of the column ``answer``, else 0.0.

    Both are read alike, see ``rollouts.answers``; without a mark a text's answer is its last line,
    or all of it. Numbers are equal by value (42.0 is 42, 1,234 is 1234; 007 is text) and so are
    true and True; other text must agree to the letter. None where ``answer`` is None.

    Raises:
        ValueError: a reference that is empty, or neither text, a number nor a boolean.

    """
    if answer is None:
        raise ValueError(EXACT_MATCH_NEEDED)
    scores: list[float | None] = []
    for index, (completion, reference) in enumerate(zip(completions, answer, strict=True)):
        if reference is None:
            scores.append(None)
            continue
        right = exact_reference(reference, where=f"completion {index}")
        scores.append(float(bool(right & _compared(completion_text(completion)))))
    return scores


def exact_reference(value: Any, *, where: str) -> frozenset[str | Decimal]:
    """What a reference of :func:`exact_match` is compared by; ``where`` names the row in errors."""
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        answers = _compared(str(value))
        if answers:
            return answers
        what = "is empty"
    else:
        what = f"is {value!r}, a {type(value).__name__}"
    raise ValueError(
        f"exact_match: the reference of {where} {what}; give one text, number or boolean as "
        "'answer', or remove the row"
    )


_NUMBER = re.compile(
    r"[$€£]?(-?)[$€£]?((?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?|\.\d+)([eE][+-]?\d{1,3})?"
)


def _compared(text: str) -> frozenset[str | Decimal]:
    """The answers that a text may be said to give, numbers and booleans by value."""
    marked = marked_answer(text)
    readings = [final_answer(text), after_thinking(text)] if marked is None else [marked]
    lines = ("\n".join(map(str.strip, reading.strip().splitlines())) for reading in readings)
    return frozenset(_value(reading) for reading in lines if reading)


def _value(answer: str) -> str | Decimal:
    if number := _NUMBER.fullmatch(answer.replace("−", "-")):
        return Decimal((number[1] + number[2] + (number[3] or "")).replace(",", ""))
    return answer.casefold() if answer.casefold() in {"true", "false"} else answer


def reasoning_gym(
    completions: Sequence[Any], entry: Sequence[Any] | None = None, **_: Any
) -> list[float | None]:
    """Score by the task's verifier, in [0, 1]; 1.0 is a fully correct answer.

    It is asked about the marked answer as it stands and without emphasis, or the whole completion
    if it marks none (``answer_readings``); the best counts. An answer on which the verifier raises
    scores 0.0. The row's ``entry`` is the reasoning-gym entry (or its JSON); its metadata name the
    task. An entry whose own answer does not score 1.0 gives None.
    """
    if entry is None:
        raise ValueError(REASONING_GYM_NEEDED)
    scores: list[float | None] = []
    for index, (completion, row) in enumerate(zip(completions, entry, strict=True)):
        scored = gym_entry(row, where=f"completion {index}")
        readings = answer_readings(completion_text(completion))
        score = max(scored.score(reading) for reading in readings)
        scores.append(score if scored.answerable else None)
    return scores


NAMED_REWARDS: dict[str, RewardFunction] = {
    "exact_match": exact_match,
    "math": math_accuracy,
    "reasoning_gym": reasoning_gym,
    "unit_tests": unit_tests,
}


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
    if (here := str(Path.cwd())) not in sys.path:  # python -m searches it, a console script not
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


def completion_to(prompt: Prompt, text: str) -> str | list[dict[str, Any]]:
    """A completion as rewards are given it: text, or for a conversation one message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def score_rollouts(
    reward: RewardFunction, prompts: PromptSet, rollouts: Sequence[Rollout]
) -> list[float | None]:
    """:func:`score_completions` of rollouts."""
    return score_completions(
        reward,
        prompts,
        rows=[rollout.prompt_index for rollout in rollouts],
        completions=[
            completion_to(prompts.rows[rollout.prompt_index]["prompt"], rollout.text)
            for rollout in rollouts
        ],
        completion_ids=[list(rollout.token_ids) for rollout in rollouts],
    )


def score_completions(
    reward: RewardFunction,
    prompts: PromptSet,
    *,
    rows: Sequence[int],
    completions: list[Any],
    completion_ids: list[list[int]],
) -> list[float | None]:
    """One reward per completion; None where the reward says that it does not apply.

    Args:
        reward: in trl's signature.
        prompts: with the columns that it is given.
        rows: each completion's prompt.
        completions: text, or messages for a conversation.
        completion_ids: their tokens.

    Raises:
        ValueError: the reward returned the wrong number of values, or something that is no finite
            number.

    """
    names = reward_columns(dict.fromkeys(prompts.columns))
    chosen = [prompts.rows[row] for row in rows]
    return call_reward(
        reward,
        prompts=[row["prompt"] for row in chosen],
        completions=completions,
        completion_ids=completion_ids,
        columns={name: [row.get(name) for row in chosen] for name in names},
    )


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
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number, value = math.nan, repr(value)
        if number is not None and not math.isfinite(number):
            raise ValueError(
                f"reward {name} returned {value} for completion {index}; return a finite number, "
                "or None where the reward does not apply"
            )
        rewards.append(number)
    return rewards


def check_references(reward: RewardFunction, prompts: PromptSet) -> list[int]:
    """Check columns and score each row's own reference, as a completion that gives it as answer.

    Warns with the count and the numbers of rows whose reference does not score 1, and returns them;
    their rewards are None. Rewards that are not ours are not asked.

    Raises:
        ValueError: a row lacks what the reward needs, see :func:`check_reward_columns`, or no
            row's reference scores 1.

    """
    check_reward_columns(reward, prompts)
    kind = _KINDS.get(inspect.unwrap(reward))
    if kind is None:
        return []
    answers = {
        index: completion_to(row["prompt"], text)
        for index, row in enumerate(prompts.rows)
        if (text := kind.completion(row)) is not None
    }
    scores = score_completions(
        reward,
        prompts,
        rows=list(answers),
        completions=list(answers.values()),
        completion_ids=[[] for _ in answers],
    )
    failed = [row for row, score in zip(answers, scores, strict=True) if score != 1.0]
    if not failed:
        return []
    named = ", ".join(map(str, failed[:_NAMED_ROWS]))
    summary = (
        f"{prompts.source}: {len(failed)} of {len(prompts)} rows have {kind.fault}, first "
        f"{_reference_shown(prompts.rows[failed[0]], kind.shown or kind.columns)}; rows {named}"
        f"{', ...' if len(failed) > _NAMED_ROWS else ''}"
    )
    if len(failed) == len(prompts):
        raise ValueError(
            f"{summary}. No prompt is left that the reward {reward_name(reward)} can score; mend "
            "the references, or use another reward"
        )
    left = len(prompts) - len(failed)
    summary += f". Their rewards are None: pass rates are over the other {left}"
    warnings.warn(summary, stacklevel=2)
    return failed


@dataclass(frozen=True)
class _Kind:
    """What a reward of ours is asked about a row before anything is spent.

    One of the ``columns`` must be there, ``needed`` says how to get it. ``check`` raises ValueError
    where nothing can pass the row. ``completion`` gives its reference as an answer, if it has one;
    ``fault`` is what it means where that does not score 1.
    """

    columns: tuple[str, ...]
    needed: str
    check: Callable[..., Any]
    completion: Callable[[Mapping[str, Any]], str | None]
    fault: str
    shown: tuple[str, ...] = ()  # columns of the reference, where they are others


def _math_completion(row: Mapping[str, Any]) -> str:
    reference = math_reference(row.get("solution"), row.get("answer"))
    return "" if reference is None else f"\\boxed{{{reference}}}"


def _gym_completion(row: Mapping[str, Any]) -> str | None:
    answer = gym_entry(row["entry"], where="a row").item.get("answer")
    return None if answer is None else f"<answer>{answer}</answer>"


_KINDS: dict[RewardFunction, _Kind] = {
    exact_match: _Kind(
        ("answer",),
        EXACT_MATCH_NEEDED,
        lambda row, where, **_: exact_reference(row["answer"], where=where),
        lambda row: str(row["answer"]),
        "a reference that is not its own answer",
    ),
    math_accuracy: _Kind(
        ("solution", "answer"),
        MATH_NEEDED,
        lambda row, **_: check_math_verify(),
        _math_completion,
        "a reference that math-verify cannot read",
    ),
    reasoning_gym: _Kind(
        ("entry",),
        REASONING_GYM_NEEDED,
        lambda row, where, **_: gym_entry(row["entry"], where=where),
        _gym_completion,
        "an answer that their own verifier refuses",
    ),
    unit_tests: _Kind(
        ("tests", "test"),
        TESTS_NEEDED,
        row_tests,
        reference_solution,
        "a reference solution that fails their own tests",
        REFERENCE_COLUMNS,
    ),
}


def check_reward_columns(reward: RewardFunction, prompts: PromptSet) -> None:
    """Raise ValueError if a row lacks what a reward of ours needs, or nothing can pass it."""
    kind = _KINDS.get(inspect.unwrap(reward))
    if kind is None:
        return
    for index, row in enumerate(prompts.rows):
        where = f"{prompts.source}, row {index}"
        if all(row.get(column) is None for column in kind.columns):
            raise ValueError(f"{kind.needed} ({where} has none)")
        # Wrapped are unit_tests in a sandbox of the user's, which may have any module.
        kind.check(row, where=where, any_module=hasattr(reward, "__wrapped__"))


def _reference_shown(row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    name = next((c for c in columns if row.get(c) not in (None, "")), columns[0])
    text = repr(row.get(name))
    return f"{name}={text if len(text) <= 60 else text[:57] + '...'}"
