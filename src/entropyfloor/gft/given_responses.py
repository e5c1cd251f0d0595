"""The responses that a data set brings along, for response groups: experts', others', teachers'.

Where they may stand, for every prompt:

    column ``completion`` (or another)    expert: text, messages, or a list of several
    column ``responses``                  groups made before: ``{"source", "completion", "reward"}``
    further columns                       other: as ``completion``
    a file of its own                     rows ``{"prompt", "completion", "source"}``, found by
                                          their prompt; other, where ``source`` is left out

A completion is text for a plain prompt and messages for a conversation; text given for a
conversation becomes one assistant message.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.messages import text_messages
from entropyfloor.rollouts.prompts import Prompt, PromptSet

GIVEN = ("expert", "teacher", "other")
SOURCES = (*GIVEN, "self")  # "self": the policy's own samples, which the trainer draws
EXPERT_COLUMN = "completion"
RESPONSES_COLUMN = "responses"

Completion = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Response:
    """One response of a prompt's group.

    Attributes:
        source: ``expert``, ``teacher`` or ``other``.
        completion: text, or messages for a conversation.
        reward: None if it is not scored.

    """

    source: str
    completion: Completion
    reward: float | None = None

    @property
    def key(self) -> str:
        """Equal for responses that say the same: white space at the ends does not count."""
        if isinstance(self.completion, str) or len(self.completion) == 1:
            return completion_text(self.completion).strip()
        return json.dumps(self.completion, ensure_ascii=False, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """As in a row's ``responses``; ``reward`` is there if it is known."""
        known = {} if self.reward is None else {"reward": self.reward}
        return {"source": self.source, "completion": self.completion, **known}


def given_responses(
    prompts: PromptSet,
    *,
    expert_column: str | None = None,
    other_columns: Sequence[str] = (),
    others: PromptSet | None = None,
) -> list[list[Response]]:
    """Collect them: per prompt those of groups made before, experts, other columns, the file.

    Args:
        prompts: with their columns.
        expert_column: ``completion`` when left out, if there is one.
        other_columns: of responses called other.
        others: rows of a file of its own; see the module's docstring.

    Raises:
        ValueError: a column that no row has, an empty or malformed response, a source that is none
            of :data:`GIVEN`, or a row of ``others`` whose prompt is not in the set; named by row.

    """
    for column in [*([] if expert_column is None else [expert_column]), *other_columns]:
        if all(row.get(column) is None for row in prompts.rows):
            names = sorted({name for row in prompts.rows for name in row})
            raise ValueError(
                f"{prompts.source} has no column {column!r} with responses, only "
                f"{', '.join(map(repr, names))}; name one of them"
            )
    columns = [(expert_column or EXPERT_COLUMN, "expert"), *((c, "other") for c in other_columns)]
    groups = []
    for index, row in enumerate(prompts.rows):
        where = f"{prompts.source}, row {index}"
        group = _made_before(row, where)
        for column, source in columns:
            for completion in _completions(row.get(column), f"{where}, column {column!r}"):
                group.append(_response(source, completion, row["prompt"], where))
        groups.append(group)
    if others is not None:
        _add(groups, prompts, others)
    return groups


def _add(groups: list[list[Response]], prompts: PromptSet, others: PromptSet) -> None:
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts.prompts):
        places.setdefault(_prompt_key(prompt), []).append(index)
    for index, row in enumerate(others.rows):
        where = f"{others.source}, row {index}"
        found = places.get(_prompt_key(row["prompt"]))
        if found is None:
            raise ValueError(
                f"{where}: its prompt is none of those of {prompts.source}; remove the row, or add "
                "the prompt"
            )
        completions = _completions(row.get(EXPERT_COLUMN), where)
        if not completions:
            raise ValueError(f"{where} has no completion; remove the row or fill it in")
        for completion in completions:
            response = _response(row.get("source", "other"), completion, row["prompt"], where)
            for place in found:
                groups[place].append(response)


def _prompt_key(prompt: Prompt) -> str:
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def _made_before(row: Mapping[str, Any], where: str) -> list[Response]:
    found = row.get(RESPONSES_COLUMN)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ValueError(
            f"{where}: the column {RESPONSES_COLUMN!r} is a list of objects with source, "
            f"completion and reward, got {found!r:.80}"
        )
    group = []
    for number, each in enumerate(found):
        place = f"{where}, response {number}"
        completions = _completions(each.get("completion"), place)
        if len(completions) != 1:
            raise ValueError(f"{place} has {len(completions)} completions; give exactly one")
        reward = each.get("reward")
        if reward is not None and not _is_finite(reward):
            raise ValueError(
                f"{place} has the reward {reward!r}; give a finite number, or none at all"
            )
        response = _response(each.get("source"), completions[0], row["prompt"], place)
        group.append(Response(response.source, response.completion, reward))
    return group


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _completions(value: Any, where: str) -> list[Completion]:
    """One or several, as they may stand in a column."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if value and all(isinstance(part, Mapping) for part in value):
            return [[dict(message) for message in value]]
        return [completion for part in value for completion in _completions(part, where)]
    raise ValueError(
        f"{where}: a completion is text, a list of messages, or a list of several of these; got "
        f"{type(value).__name__}"
    )


def _response(source: Any, completion: Completion, prompt: Prompt, where: str) -> Response:
    if source not in GIVEN:
        raise ValueError(f"{where}: the source of a response is {', '.join(GIVEN)}; got {source!r}")
    if isinstance(completion, str):
        if not completion.strip():
            raise ValueError(f"{where} has an empty completion; remove it or fill it in")
        if isinstance(prompt, list):
            completion = [{"role": "assistant", "content": completion}]
        return Response(source, completion)
    if isinstance(prompt, str):
        raise ValueError(
            f"{where}: the completion is a list of messages but the prompt is text; send the "
            "prompt as a conversation (--chat), or give text"
        )
    return Response(source, text_messages(completion, f"{where}, completion"))
