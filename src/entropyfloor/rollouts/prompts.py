"""Prompt sets: rows with a ``prompt`` and whatever columns the reward needs.

A prompt is a plain string, or a conversation (a list of ``{"role": ..., "content": ...}``
messages) that the checkpoint's own chat template renders, as in trl. Three sources, told apart by
how they are written:

    PATH.jsonl                                   one JSON object per line (see reading.py)
    DIRECTORY                                    a ``datasets.Dataset`` written by ``save_to_disk``
    reasoning_gym:TASK?size=24&seed=7&...        generated here; options go to the task's config

Everything is checked when the set is made: nothing is generated from a set with a broken row. Rows
stay the Python objects that were read: wherever a row goes, a reward function is handed its values
as they are here, and None for a column that other rows have.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropyfloor.rollouts.reading import check_unicode, read_rows, text_messages
from entropyfloor.rollouts.reasoning_gym_prompts import PREFIX, reasoning_gym_rows

if TYPE_CHECKING:
    from datasets import Dataset

Prompt = str | list[dict[str, Any]]

# What trl calls a reward function with, and answers to a prompt: never among a row's columns there.
_NO_REWARD_COLUMNS = {
    *("prompt", "prompts", "completion", "completions", "completion_ids", "responses"),
    *("trainer_state", "log_extra", "log_metric", "environments"),
}
ROW_COLUMN = "entropyfloor_row"  # of `row_dataset`: the row's number

_ALLOWED = (
    "a JSONL file, a directory written by datasets' save_to_disk, or "
    f"{PREFIX}TASK?size=24&seed=7, such as {PREFIX}chain_sum?size=24&seed=7"
)


@dataclass(frozen=True)
class PromptSet:
    """Rows with a ``prompt`` and any other columns, checked.

    Raises:
        ValueError: no rows, a row without ``prompt``, or an empty or malformed prompt; the row is
            named.

    """

    rows: tuple[Mapping[str, Any], ...]  # one mapping per prompt; at least one
    source: str = "rows"  # where the rows came from, for reports

    def __post_init__(self) -> None:
        rows = tuple(
            checked_row(row, f"{self.source}, row {index}") for index, row in enumerate(self.rows)
        )
        if not rows:
            raise ValueError(f"{self.source} has no rows; at least one prompt is needed")
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, in order."""
        return [row["prompt"] for row in self.rows]

    @property
    def conversational(self) -> bool:
        """Whether any prompt is a list of messages."""
        return any(not isinstance(prompt, str) for prompt in self.prompts)

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the prompts: equal for comparable reports."""
        return _digest(self.prompts)

    @property
    def full_digest(self) -> str:
        """As :attr:`digest`, of every column: what rewards depend on."""
        return _digest([dict(row) for row in self.rows])

    @property
    def texts(self) -> list[str]:
        """The prompts to be read by people; conversations as ``role: content`` lines."""
        return [
            prompt
            if isinstance(prompt, str)
            else "\n".join(f"{message['role']}: {_said(message)}" for message in prompt)
            for prompt in self.prompts
        ]

    @property
    def user_texts(self) -> list[str]:
        """What is asked: plain prompts, and of conversations what users say in them."""
        return [
            prompt
            if isinstance(prompt, str)
            else "\n\n".join(_said(m) for m in prompt if m["role"] == "user")
            or "\n\n".join(map(_said, prompt))
            for prompt in self.prompts
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in the order in which they are met."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def with_chat_options(
        self,
        *,
        chat: bool = False,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "PromptSet":
        """:func:`row_with_chat_options` of every row.

        Raises:
            ValueError: ``system`` or ``chat_template_kwargs`` for a plain prompt, which no chat
                template renders.

        """
        options = {"--system": system, "--chat_template_kwargs": chat_template_kwargs}
        idle = " and ".join(name for name, value in options.items() if value)
        plain = next((i for i, prompt in enumerate(self.prompts) if isinstance(prompt, str)), None)
        if idle and not chat and plain is not None:
            raise ValueError(
                f"{self.source}, row {plain} is a plain prompt, which no chat template renders: "
                f"{idle} would have no effect; give --chat (chat=True) too"
            )
        rows = (row_with_chat_options(row, chat, system, chat_template_kwargs) for row in self.rows)
        return PromptSet(tuple(rows), self.source)

    def dataset(self) -> "Dataset":
        """A ``datasets.Dataset`` for trl's trainers, whose rows are these Python objects.

        Arrow holds the rows' numbers only. It would give the messages of every conversation all
        keys of all messages, turn 12 into 12.0 beside 0.5, and refuse ``"a"`` beside ``["b"]``.
        """
        names = self.columns
        return row_dataset([{name: row.get(name) for name in names} for row in self.rows])

    def check_json(self) -> None:
        """Raise ValueError if a row cannot be written as JSON and read back as it is."""
        for index, row in enumerate(self.rows):
            for name, value in row.items():
                if (kind := _not_json(value)) is not None:
                    raise ValueError(
                        f"{self.source}, row {index}: column {name!r} holds {kind}, which JSON "
                        "cannot hold, and the rows are to be written as JSON Lines; convert it to "
                        "text or numbers, or remove the column"
                    )


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, as its escape.
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _said(message: Mapping[str, Any]) -> str:
    """A message's text, and the calls of one that has calls in its place."""
    content = message.get("content")
    return json.dumps(message["tool_calls"], default=str) if content is None else str(content)


def row_with_chat_options(
    row: Mapping[str, Any],
    chat: bool = False,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """One row as the options ask for it; what the row says itself wins.

    Args:
        row: with ``prompt``, or ``messages`` (a row for SFT).
        chat: send a plain prompt as a user message, and its completion as the assistant's.
        system: message before every conversation that has none.
        chat_template_kwargs: variables of the chat template, such as ``enable_thinking``.

    """
    row = dict(row)
    if chat and isinstance(row.get("prompt"), str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        if row.get("completion") and isinstance(row["completion"], str):
            row["completion"] = [{"role": "assistant", "content": row["completion"]}]
    for name in ("prompt", "messages"):
        messages = row.get(name)
        if system is not None and isinstance(messages, list) and messages[0]["role"] != "system":
            row[name] = [{"role": "system", "content": system}, *messages]
    if chat_template_kwargs:
        kwargs = row.get("chat_template_kwargs") or {}
        known = {name: value for name, value in kwargs.items() if value is not None}
        row["chat_template_kwargs"] = {**chat_template_kwargs, **known}
    return row


def reward_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a reward function is handed."""
    return {name: value for name, value in row.items() if name not in _NO_REWARD_COLUMNS}


def row_dataset(
    rows: Sequence[Mapping[str, Any]], added: Mapping[str, Sequence[Any]] | None = None
) -> "Dataset":
    """A ``datasets.Dataset`` of row numbers that hands out ``rows``, with ``added`` columns.

    Its rows have the keys of the first one, and ``rows`` may be a dataset itself.
    """
    from datasets import Dataset

    numbers = Dataset.from_dict({ROW_COLUMN: list(range(len(rows)))})
    return numbers.with_transform(_LookUp(rows, added or {}))


@dataclass(eq=False)
class _LookUp:
    """Row numbers to rows."""

    rows: Sequence[Mapping[str, Any]]
    added: Mapping[str, Sequence[Any]]

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        numbers = batch[ROW_COLUMN]
        rows = [self.rows[number] for number in numbers]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        added = {name: [values[n] for n in numbers] for name, values in self.added.items()}
        return {**columns, **added}


def _not_json(value: Any) -> str | None:
    """What in a value JSON would lose; None if it reads back as it was."""
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if type(value) is list:
        return next((kind for each in value if (kind := _not_json(each))), None)
    if isinstance(value, dict):
        key = next((key for key in value if not isinstance(key, str)), None)
        if key is not None:
            return f"an object with the key {key!r}"
        return _not_json(list(value.values()))
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def load_prompts(spec: str | Path) -> PromptSet:
    """Read a prompt set; see the module's docstring for what ``spec`` may be.

    Raises:
        FileNotFoundError: nothing is at that path.
        ValueError: no rows, no ``prompt`` column, an empty prompt, or a file that cannot be read.

    """
    return PromptSet(tuple(stream_rows(spec, "prompts")), str(spec))


def stream_rows(spec: str | Path, what: str = "rows") -> Iterator[Mapping[str, Any]]:
    """The rows of what :func:`load_prompts` reads, one at a time, whatever columns they have.

    Raises:
        FileNotFoundError: nothing is at that path.
        ValueError: a file that cannot be read.

    """
    path = Path(spec)
    if isinstance(spec, str) and spec.startswith(PREFIX):
        yield from reasoning_gym_rows(spec)
    elif path.is_dir():
        yield from _saved_dataset_rows(path)
    elif path.is_file():
        yield from read_rows(path)
    else:
        raise FileNotFoundError(f"no {what} at {str(spec)!r}; give {_ALLOWED}")


def _saved_dataset_rows(path: Path) -> Iterable[dict[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not a directory written by save_to_disk; give {_ALLOWED}"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); was its copy cut off? Copy or save it again"
        ) from error
    if isinstance(dataset, DatasetDict):
        splits = " or ".join(str(path / name) for name in dataset)
        raise ValueError(f"{path} holds several splits; give one of them: {splits}")
    yield from dataset


def checked_row(row: Any, where: str) -> Mapping[str, Any]:
    """The row itself; a copy of it where the prompt's content came in parts, which are joined."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}; a row is a mapping with a 'prompt'")
    if "prompt" not in row:
        raise ValueError(
            f"{where} has no column 'prompt', only "
            f"{', '.join(map(repr, sorted(row))) or 'nothing'}; rename the column that holds the "
            "prompt"
        )
    variables, tools = row.get("chat_template_kwargs"), row.get("tools")
    if variables is not None and not isinstance(variables, Mapping):
        raise ValueError(
            f"{where}: chat_template_kwargs is a {type(variables).__name__}; give an object such "
            'as {"enable_thinking": false}'
        )
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: tools are no JSON ({error.msg})") from error
    if tools is not None and not isinstance(tools, list):
        raise ValueError(
            f"{where}: tools are a {type(tools).__name__}; give a list of JSON schemas"
        )
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{where} has an empty prompt; remove the row or fill it in")
        check_unicode(prompt, f"{where}, prompt")
        return row
    if not isinstance(prompt, list) or not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(
            f"{where}: a prompt is a string or a list of messages, got {type(prompt).__name__}"
        )
    messages = text_messages(prompt, f"{where}, prompt")
    return row if messages == prompt else {**row, "prompt": messages}
