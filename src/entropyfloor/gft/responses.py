"""One response, the sources it may have, and the one reader of a data set's responses.

Where a data set's responses may stand, for every prompt:

    column ``completion`` (or another)    expert: text, messages, or a list of several
    column ``responses``                  groups made before: ``{"source", "completion", "reward"}``
    further columns                       other: as ``completion``
    a file of its own                     rows ``{"prompt", "completion", "source"}``, found by
                                          their prompt; other, where ``source`` is left out

A completion is text for a plain prompt and messages for a conversation; text given for a
conversation becomes one assistant message, in training as where groups are built.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.reading import text_messages
from entropyfloor.rollouts.rewards import completion_to

DATASET_SOURCES = ("expert", "teacher", "other")
SOURCES = (*DATASET_SOURCES, "self")  # "self": the policy's samples, which the trainer draws
EXPERT_COLUMN = "completion"
RESPONSES_COLUMN = "responses"

_LARGEST_REWARD = 3.4e38

Completion = str | list[dict[str, Any]]


@dataclass
class Response:
    """One response of a prompt's group. What follows the reward is known in training only."""

    source: str  # one of `SOURCES`
    # Text, or messages for a conversation; None for a policy sample, which trl hands over as tokens
    completion: Completion | None
    reward: float | None = None  # None if it is not scored
    prompt_ids: Sequence[int] = ()  # tokens it follows
    ids: Sequence[int] = ()  # its tokens
    scored: Sequence[bool] | None = None  # per token, whether the loss counts it; None: all of them
    advantage: float = 0.0  # without the source's weight; set by `set_advantages`
    in_loss: bool = True  # whether it takes part in the loss; set by `set_advantages`

    @property
    def key(self) -> str:
        """Equal for responses that say the same: white space at the ends does not count."""
        assert self.completion is not None
        if isinstance(self.completion, str) or len(self.completion) == 1:
            return completion_text(self.completion).strip()
        return json.dumps(self.completion, ensure_ascii=False, sort_keys=True)

    @property
    def num_scored(self) -> int:
        """Tokens that the loss counts."""
        if not self.in_loss:
            return 0
        return len(self.ids) if self.scored is None else sum(self.scored)

    def to_dict(self) -> dict[str, Any]:
        """As in a row's ``responses``; ``reward`` is there if it is known."""
        known = {} if self.reward is None else {"reward": self.reward}
        return {"source": self.source, "completion": self.completion, **known}


def collect_responses(
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
            of `DATASET_SOURCES`, or a row of ``others`` whose prompt is not in the set; the row is
            named.

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
        group = row_responses(row, where)
        for column, source in columns:
            for completion in _completions(row.get(column), f"{where}, column {column!r}"):
                group.append(_response(source, completion, row["prompt"], where))
        groups.append(group)
    if others is not None:
        _add(groups, prompts, others)
    return groups


def _add(groups: list[list[Response]], prompts: PromptSet, others: PromptSet) -> None:
    rows_of: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts.prompts):
        rows_of.setdefault(_prompt_key(prompt), []).append(index)
    for index, row in enumerate(others.rows):
        where = f"{others.source}, row {index}"
        prompt_rows = rows_of.get(_prompt_key(row["prompt"]))
        if prompt_rows is None:
            raise ValueError(
                f"{where}: its prompt is none of those of {prompts.source}; remove the row, or add "
                "the prompt"
            )
        completions = _completions(row.get(EXPERT_COLUMN), where)
        if not completions:
            raise ValueError(f"{where} has no completion; remove the row or fill it in")
        for completion in completions:
            # A table fills a source that is left out with None.
            response = _response(row.get("source") or "other", completion, row["prompt"], where)
            for prompt_row in prompt_rows:
                groups[prompt_row].append(response)


def _prompt_key(prompt: Prompt) -> str:
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def row_responses(row: Mapping[str, Any], where: str) -> list[Response]:
    """The responses of a row's column ``responses``, checked; none if there is no such column.

    Args:
        row: with ``prompt``.
        where: data set and row, for errors.

    Raises:
        ValueError: an unknown source, an empty or malformed completion, a reward that is no finite
            number; the response is named.

    """
    entries = row.get(RESPONSES_COLUMN)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) for each in entries):
        raise ValueError(
            f"{where}: the column {RESPONSES_COLUMN!r} is a list of objects with source, "
            f"completion and reward, got {entries!r:.80}"
        )
    group = []
    for number, each in enumerate(entries):
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
        response.reward = reward
        group.append(response)
    return group


def _is_finite(value: Any) -> bool:
    # In fp32, as trl's rewards: -1e39 would be an infinity, and 10**400 is no float at all.
    return isinstance(value, int | float) and abs(value) <= _LARGEST_REWARD


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
    if source not in DATASET_SOURCES:
        raise ValueError(
            f"{where}: the source of a response is {', '.join(DATASET_SOURCES)}; got {source!r} "
            "(policy samples are drawn by the trainer)"
        )
    if isinstance(completion, str):
        if not completion.strip():
            raise ValueError(f"{where} has an empty completion; remove it or fill it in")
        return Response(source, completion_to(prompt, completion))
    if isinstance(prompt, str):
        raise ValueError(
            f"{where}: the completion is a list of messages but the prompt is text; send the "
            "prompt as a conversation (--chat), or give text"
        )
    return Response(source, text_messages(completion, f"{where}, completion"))
