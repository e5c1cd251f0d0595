"""Score each row's own reference before anything is spent.

A reference that its reward cannot read, a reference solution that fails its own tests or an entry
that its own verifier refuses would be blamed on the model. The rewards return None for such rows,
so that pass rates are over the others; here they are named, in one summary.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from entropyfloor.rollouts.math_accuracy import NEEDED as MATH_NEEDED
from entropyfloor.rollouts.math_accuracy import check_math_verify, math_accuracy, math_reference
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.reasoning_gym_prompts import gym_entry
from entropyfloor.rollouts.rewards import (
    EXACT_MATCH_NEEDED,
    REASONING_GYM_NEEDED,
    RewardFunction,
    completion_to,
    exact_match,
    exact_reference,
    reasoning_gym,
    reward_name,
    score_completions,
)
from entropyfloor.rollouts.unit_tests import NEEDED as TESTS_NEEDED
from entropyfloor.rollouts.unit_tests import (
    REFERENCE_COLUMNS,
    reference_solution,
    row_tests,
    unit_tests,
)

_NAMED_ROWS = 20


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
    warnings.warn(
        f"{summary}. Their rewards are None: pass rates are over the other {left}", stacklevel=2
    )
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
    custom = inspect.unwrap(reward) is not reward  # unit_tests in a sandbox of the user's
    for index, row in enumerate(prompts.rows):
        where = f"{prompts.source}, row {index}"
        if all(row.get(column) is None for column in kind.columns):
            raise ValueError(f"{kind.needed} ({where} has none)")
        kind.check(row, where=where, any_module=custom)


def _reference_shown(row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    name = next((c for c in columns if row.get(c) not in (None, "")), columns[0])
    text = repr(row.get(name))
    return f"{name}={text if len(text) <= 60 else text[:57] + '...'}"
