"""Prompts from reasoning-gym: procedural tasks with their own verifier.

``reasoning_gym:chain_sum?size=24&seed=7&min_terms=3`` names the task and, after ``?``, fields of
its config. A row carries the whole entry as ``entry`` so that the task's verifier can score an
answer to it later.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

PREFIX = "reasoning_gym:"
_JUDGED = 4  # entries by which the verifier of a task is asked whether it takes lists
_INSTALL = "reasoning-gym is not installed; pip install 'entropyfloor[tasks]'"


def parse_reasoning_gym_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``reasoning_gym:TASK?a=1&b=x`` into task and options (JSON, else strings)."""
    task, _, query = spec.removeprefix(PREFIX).partition("?")
    if not task:
        raise ValueError(f"{spec!r} names no task; write {PREFIX}TASK?size=24&seed=7")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise ValueError(
            f"{spec!r}: options are written NAME=VALUE and joined by '&' ({error})"
        ) from error
    options: dict[str, Any] = {}
    for name, text in pairs:
        if name in options:
            raise ValueError(f"{spec!r} sets {name!r} twice")
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError:
            options[name] = text
    return task, options


def reasoning_gym_dataset(task: str, options: dict[str, Any]) -> Any:
    """Make the ``reasoning_gym.dataset.ProceduralDataset`` of a task.

    Raises:
        ValueError: reasoning-gym is missing, the task is unknown, or its config refuses the
            options.

    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(_INSTALL) from error
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"reasoning-gym has no task {task!r} (it has {len(DATASETS)}){hint}")
    try:
        return reasoning_gym.create_dataset(task, **options)
    except (TypeError, AssertionError, ValueError) as error:
        fields = ", ".join(DATASETS[task][1].__dataclass_fields__)
        raise ValueError(
            f"reasoning-gym's {task} refuses {options}: {error}; its options are {fields}"
        ) from error


def reasoning_gym_rows(spec: str) -> list[dict[str, Any]]:
    """Rows ``prompt`` (the question), ``answer`` and ``entry`` of a ``reasoning_gym:`` spec."""
    task, options = parse_reasoning_gym_spec(spec)
    dataset = reasoning_gym_dataset(task, options)
    entries = _as_json(dataset, [dataset[index] for index in range(len(dataset))])
    return [
        {"prompt": entry["question"], "answer": entry["answer"], "entry": entry}
        for entry in entries
    ]


@dataclass(frozen=True)
class GymEntry:
    """An entry of a task with the task's verifier."""

    item: Mapping[str, Any]
    verifier: Any

    def score(self, answer: str) -> float:
        """The verifier's score in [0, 1]; some raise on text that they cannot parse: no answer."""
        try:
            return float(self.verifier.score_answer(answer, self.item))
        except Exception:
            return 0.0

    @property
    def answerable(self) -> bool:
        """Whether the entry's own answer scores 1.0; an entry without one may have many."""
        answer = self.item.get("answer")
        if answer is None:
            return True
        key = json.dumps(self.item, sort_keys=True, default=str)
        if key not in _ANSWERABLE:
            _ANSWERABLE[key] = self.score(answer if isinstance(answer, str) else str(answer)) >= 1.0
        return _ANSWERABLE[key]


_ANSWERABLE: dict[str, bool] = {}
_verifier = functools.cache(lambda task: reasoning_gym_dataset(task, {}))


def gym_entry(value: Any, *, where: str) -> GymEntry:
    """Read a row's ``entry``, or its JSON; ``where`` names the row in errors.

    Raises:
        ValueError: it is no entry, or names no task that reasoning-gym has.

    """
    try:
        item = json.loads(value) if isinstance(value, str) else value
        task = (item.get("metadata") or {}).get("source_dataset")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"reasoning_gym: the entry of {where} is {value!r:.80}; it must be a reasoning-gym "
            "entry (question, answer, metadata) or its JSON"
        ) from error
    if task is None:
        raise ValueError(
            "a reasoning-gym entry names its task in metadata.source_dataset; that of "
            f"{where} does not"
        )
    return GymEntry(item, _verifier(task))


def _as_json(dataset: Any, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with lists for tuples: what is written as JSON then reads back as the same rows.

    As they are for a task whose verifier takes no lists (``arc_agi``, ``rearc``).
    """
    plain: list[dict[str, Any]] = [_lists(entry) for entry in entries]
    for entry, other in zip(entries[:_JUDGED], plain, strict=False):
        answer = str(entry["answer"])
        if GymEntry(entry, dataset).score(answer) != GymEntry(other, dataset).score(answer):
            return entries
    return plain


def _lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return str(value) if isinstance(value, str) else value
