"""Rows of group fine-tuning: checked, scored, drawn from.

    {"prompt": str or messages,
     "responses": [{"source": "expert", "completion": str or messages, "reward": float or None}],
     ...further columns for the reward functions}

Everything that can be wrong with a row is found before the first step, and named by the row. The
data set's responses are scored once, before the first step, by all processes together. Rewards are
kept in the run's folder, so that a resumed run does not pay for them again:

    response_rewards.jsonl   {"key": digest of dataset, row and response, "reward": float or null}

A new run begins a new file: it cannot know that the reward functions are still the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset
from tqdm.auto import tqdm

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.responses import (
    DATASET_SOURCES,
    RESPONSES_COLUMN,
    Response,
    row_responses,
)
from entropyfloor.io import append_jsonl, read_jsonl
from entropyfloor.rollouts.prompts import ROW_COLUMN, PromptSet, checked_row, row_dataset
from entropyfloor.rollouts.teacher_forced import encode_held_out

logger = get_logger(__name__)

REWARDS_COLUMN = "_response_rewards"
TRAINER_COLUMNS = (ROW_COLUMN, REWARDS_COLUMN, RESPONSES_COLUMN)  # two are added to the dataset
REWARDS_FILE = "response_rewards.jsonl"
_RESPONSES_PER_CALL = 64  # of the reward functions, on each process

# Rows and completions of one process to rewards of *all* processes' responses in their order, NaN
# where there is none. All processes call it as often, with as many.
ScorePart = Callable[[list[dict[str, Any]], list[Any]], Sequence[float]]


def check_rows(
    dataset: Any, args: GFTConfig, *, num_self: int, name: str, has_rewards: bool = True
) -> None:
    """Raise ValueError at the first bad row.

    Args:
        dataset: with columns ``prompt`` and ``responses`` (which may be missing with
            policy samples).
        args: how many responses of each source are drawn.
        num_self: policy samples per prompt in this dataset's steps.
        name: of the dataset, for errors.
        has_rewards: whether there are reward functions; without, every response carries its reward.

    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is {type(dataset).__name__}; group fine-tuning scores the rows' responses "
            "before the first step, so it needs a datasets.Dataset, which can be read twice"
        )
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    present = columns_of(dataset)
    if "prompt" not in present:
        raise ValueError(f"{name} has the columns {present}; 'prompt' is missing")
    if RESPONSES_COLUMN not in present and not num_self:
        raise ValueError(f"{name} has no column 'responses' and num_self is 0: nothing to train on")
    way_out = "pass reward_funcs, or num_self=0 and rows whose responses all carry a reward"
    if num_self and not has_rewards:
        raise ValueError(f"without reward_funcs policy samples cannot be scored: {way_out}")
    limits = args.response_counts()
    unused: Counter[str] = Counter()
    for index, row in enumerate(dataset):
        where = f"{name}, row {index}"
        responses = row_responses(checked_row(row, where), where)
        present_of = Counter(response.source for response in responses)
        unused += Counter({s: count for s, count in present_of.items() if not limits[s]})
        size = num_self + sum(min(limits[s], count) for s, count in present_of.items())
        if size == 0:
            raise ValueError(
                f"{where} has no response to train on: it has {', '.join(present_of) or 'none'}, "
                f"and at most {limits} are drawn and {num_self} policy samples. Leave it out or "
                "raise num_self"
            )
        if size == 1 and args.group_of_one == "error" and args.advantages:
            raise ValueError(
                f"{where} gives a group of one response, which has nothing to be compared with. "
                "Raise num_self, or choose group_of_one='imitate' (a response of the data set "
                "counts with advantage 1) or 'skip'"
            )
        for number, response in enumerate(responses):
            if not has_rewards and limits[response.source] and response.reward is None:
                raise ValueError(
                    f"{where}, response {number} carries no reward, and there are no "
                    f"reward_funcs: {way_out}"
                )
    for source in DATASET_SOURCES:
        if count := unused[source]:
            logger.warning(f"{name}: {count} {source} responses are not used, num_{source} is 0")


def columns_of(dataset: Dataset) -> list[str]:
    """Names of a dataset's columns, which that of a ``PromptSet`` knows by its rows only."""
    return list(dataset[0]) if len(dataset) else dataset.column_names


def without_trainer_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what the trainer keeps in it."""
    return {name: value for name, value in row.items() if name not in TRAINER_COLUMNS}


def encode_completions(
    rows: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Any],
    tokenizer: Any,
) -> list[list[int]]:
    """Token ids of the data set's responses, the end-of-sequence token included.

    Args:
        rows: with ``prompt`` and what its chat template needs, one for each completion.
        prompt_ids: tokens of their prompts, as for generation.
        completions: text or messages.
        tokenizer: of the model.

    """
    whole = [{**row, "completion": c} for row, c in zip(rows, completions, strict=True)]
    if not whole:
        return []
    return [
        list(each.ids) for each in encode_held_out(PromptSet(tuple(whole)), prompt_ids, tokenizer)
    ]


def draw(
    responses: Sequence[Response], limits: Mapping[str, int], *, seed: int, step: int, row: int
) -> list[int]:
    """Which of a row's responses take part in a step, as indices.

    Where a row has more of a source than its limit, which ones follows from seed, step and row
    alone: the same on any number of processes, and after a resume.
    """
    generator = np.random.default_rng((seed, step, row))
    drawn: list[int] = []
    for source in DATASET_SOURCES:
        present = [n for n, response in enumerate(responses) if response.source == source]
        if len(present) > limits[source]:
            present = sorted(generator.choice(present, limits[source], replace=False).tolist())
        drawn.extend(present)
    return drawn


def add_rewards(
    dataset: Dataset,
    score: ScorePart,
    args: GFTConfig,
    *,
    name: str,
    file: RewardFile,
    ranks: int = 1,
    rank: int = 0,
    progress: bool = False,
) -> Dataset:
    """Add rows' numbers and the reward of every response that may be drawn.

    Args:
        dataset: checked by `check_rows`. A reward that a response carries is used as it is.
        score: see `ScorePart`.
        args: which sources are drawn, and ``on_unscored``.
        name: of the dataset, for errors.
        file: what an interrupted run has scored; written as it goes.
        ranks: processes that share the work.
        rank: of this one.
        progress: show a bar.

    Raises:
        ValueError: a response without a finite reward, named by row and number.

    """
    limits = args.response_counts()
    rewards: list[list[float]] = []
    missing: dict[tuple[int, int], tuple[str, Any]] = {}  # row, response: key, completion
    for index, row in enumerate(dataset):
        responses = row_responses(row, f"{name}, row {index}")
        rewards.append([math.nan] * len(responses))
        for number, response in enumerate(responses):
            if response.reward is not None:
                # In fp32, as trl's: rewards that agree must agree to the last bit.
                rewards[-1][number] = float(np.float32(response.reward))
            elif limits[response.source]:
                key = _key(name, row, response)
                missing[index, number] = key, response.completion

    def check(place: tuple[int, int], value: float) -> None:
        if math.isinf(value) or (math.isnan(value) and args.on_unscored == "error"):
            raise ValueError(
                f"{name}, row {place[0]}, response {place[1]}: the reward is {value} (None counts "
                "as NaN). Rewards must be finite; on_unscored='leave_out' leaves responses "
                "without any out"
            )

    todo = [place for place, (key, _) in missing.items() if key not in file.known]
    at_once = _RESPONSES_PER_CALL * ranks
    for start in tqdm(
        range(0, len(todo), at_once), desc="Scoring the data set's responses", disable=not progress
    ):
        part = todo[start : start + at_once]
        # trl gathers rewards, so that every process must score as many: the last one again.
        share = math.ceil(len(part) / ranks)
        padded = part + part[-1:] * (share * ranks - len(part))
        here = padded[rank * share : (rank + 1) * share]
        rows = [dataset[index] for index, _ in here]
        completions = [missing[place][1] for place in here]
        values = dict(zip(part, score(rows, completions)[: len(part)], strict=True))
        for place, value in values.items():
            check(place, value)
        file.add({missing[place][0]: value for place, value in values.items()})
    for (index, number), (key, _) in missing.items():
        rewards[index][number] = value = file.known[key]
        check((index, number), value)
    return row_dataset(dataset, {ROW_COLUMN: range(len(dataset)), REWARDS_COLUMN: rewards})


def _key(name: str, row: Mapping[str, Any], response: Response) -> str:
    """Digest of a response with everything that reward functions see of its row."""
    seen = {column: value for column, value in row.items() if column != RESPONSES_COLUMN}
    text = json.dumps([name, seen, response.completion], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RewardFile:
    """Rewards by key; NaN where no reward function applied.

    Args:
        folder: of the run.
        resumed: read what is there; else begin anew.
        writes: whether this process writes.

    """

    def __init__(self, folder: str | Path, *, resumed: bool, writes: bool) -> None:
        self._path, self._writes = Path(folder) / REWARDS_FILE, writes
        if writes and not resumed:
            self._path.unlink(missing_ok=True)
        entries = read_jsonl(self._path, repair=writes) if resumed else []
        self.known: dict[str, float] = {
            entry["key"]: math.nan if entry["reward"] is None else float(entry["reward"])
            for entry in entries
        }

    def add(self, rewards: Mapping[str, float]) -> None:
        """Keep rewards, and write them at once."""
        self.known.update(rewards)
        if self._writes and rewards:
            plain = {key: None if math.isnan(value) else value for key, value in rewards.items()}
            append_jsonl(self._path, ({"key": k, "reward": value} for k, value in plain.items()))
