"""Prompt sets: rows with a ``prompt`` and whatever columns the reward needs.

A prompt is a plain string, or a conversation (a list of ``{"role": ..., "content": ...}``
messages) that the checkpoint's own chat template renders, as in trl. Three sources, told apart by
how they are written:

    PATH.jsonl                                   one JSON object per line
    DIRECTORY                                    a ``datasets.Dataset`` written by ``save_to_disk``
    reasoning_gym:TASK?size=24&seed=7&...        generated here; options go to the task's config

Everything is checked when the set is made: nothing is generated from a set with a broken row.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.reasoning_gym_prompts import PREFIX, reasoning_gym_rows

Prompt = str | list[dict[str, Any]]

_ALLOWED = (
    "a JSONL file, a directory written by datasets' save_to_disk, or "
    f"{PREFIX}TASK?size=24&seed=7, such as {PREFIX}chain_sum?size=24&seed=7"
)


@dataclass(frozen=True)
class PromptSet:
    """Rows with a ``prompt`` and any other columns, checked.

    Attributes:
        rows: one mapping per prompt; at least one.
        source: where the rows came from, for reports.

    Raises:
        ValueError: no rows, a row without ``prompt``, or an empty or malformed prompt; the row is
            named.

    """

    rows: tuple[Mapping[str, Any], ...]
    source: str = "rows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.rows:
            raise ValueError(f"{self.source} has no rows; at least one prompt is needed")
        for index, row in enumerate(self.rows):
            _check_row(row, f"{self.source}, row {index}")

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
        text = json.dumps(self.prompts, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def full_digest(self) -> str:
        """As :attr:`digest`, of every column: what rewards depend on."""
        rows = [dict(row) for row in self.rows]
        text = json.dumps(rows, ensure_ascii=False, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def texts(self) -> list[str]:
        """The prompts to be read by people; conversations as ``role: content`` lines."""
        return [
            prompt
            if isinstance(prompt, str)
            else "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
            for prompt in self.prompts
        ]

    def as_chat(self, *, system: str | None = None) -> "PromptSet":
        """Send each plain prompt as a user message, after ``system`` if given."""
        before = [] if system is None else [{"role": "system", "content": system}]
        rows = [
            {**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]}
            if isinstance(row["prompt"], str)
            else row
            for row in self.rows
        ]
        return PromptSet(tuple(rows), self.source)


def load_prompts(spec: str | Path) -> PromptSet:
    """Read a prompt set; see the module's docstring for what ``spec`` may be.

    Raises:
        FileNotFoundError: nothing is at that path.
        ValueError: no rows, no ``prompt`` column, an empty prompt, or a file that cannot be read.

    """
    if isinstance(spec, str) and spec.startswith(PREFIX):
        return PromptSet(tuple(reasoning_gym_rows(spec)), spec)
    path = Path(spec)
    if path.is_dir():
        return PromptSet(tuple(_saved_dataset_rows(path)), str(path))
    if path.is_file():
        return PromptSet(tuple(_jsonl_rows(path)), str(path))
    raise FileNotFoundError(f"no prompts at {str(spec)!r}; give {_ALLOWED}")


def _jsonl_rows(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); give {_ALLOWED}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error.msg}); a JSONL file has one object "
                "per line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is a JSON {type(row).__name__}; each line must be an "
                "object such as "
                '{"prompt": "...", "answer": "..."}'
            )
        yield row


def _saved_dataset_rows(path: Path) -> Iterable[dict[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not a directory written by save_to_disk; give {_ALLOWED}"
        ) from error
    if isinstance(dataset, DatasetDict):
        splits = " or ".join(str(path / name) for name in dataset)
        raise ValueError(f"{path} holds several splits; give one of them: {splits}")
    yield from dataset


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}; a row is a mapping with a 'prompt'")
    if "prompt" not in row:
        raise ValueError(
            f"{where} has no column 'prompt', only "
            f"{', '.join(map(repr, sorted(row))) or 'nothing'}; rename the column that holds the "
            "prompt"
        )
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{where} has an empty prompt; remove the row or fill it in")
        return
    if not isinstance(prompt, list) or not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(
            f"{where}: a prompt is a string or a list of messages, got {type(prompt).__name__}"
        )
    if not prompt:
        raise ValueError(f"{where} has an empty prompt (no messages); remove the row or fill it in")
    for message in prompt:
        if not {"role", "content"} <= set(message):
            raise ValueError(
                f"{where}: each message needs 'role' and 'content', got {sorted(message)}"
            )
