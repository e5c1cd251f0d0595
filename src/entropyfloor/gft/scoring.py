"""Rewards of given responses: once, before the first step, by all processes together.

They are kept in the run's folder, so that a resumed run does not pay for them again:

    given_rewards.jsonl   {"key": digest of dataset, row and response, "reward": float or null}

A new run begins a new file: it cannot know that the reward functions are still the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.rows import GIVEN_REWARDS
from entropyfloor.io import append_jsonl, read_jsonl
from entropyfloor.rollouts.prompts import ROW_COLUMN, row_dataset

FILE_NAME = "given_rewards.jsonl"
_AT_ONCE = 64  # responses per call of the reward functions and process

Pair = tuple[int, int]  # row, response
ScorePart = Callable[[list[dict[str, Any]], list[Any]], Sequence[float]]


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
    """Add rows' numbers and the reward of every given response that may be drawn.

    The reward is the cached one, else computed.

    Args:
        dataset: checked by `check_rows`.
        score: maps rows and completions of this process to rewards of *all* processes' responses in
            their order, NaN where there is none; all processes call it as often, with as many.
        args: which sources are drawn, and ``on_unscored``.
        name: of the dataset, for errors.
        file: what an interrupted run has scored; written as it goes.
        ranks: processes that share the work.
        rank: of this one.
        progress: show a bar.

    Raises:
        ValueError: a response without a finite reward, named by row and number.

    """
    counts = args.response_counts()
    rewards: list[list[float]] = []
    missing: list[Pair] = []
    for index, given in enumerate(_responses(dataset)):
        rewards.append([math.nan] * len(given))
        for number, response in enumerate(given):
            if response.get("reward") is not None:
                # In fp32, as trl's: rewards that agree must agree to the last bit.
                rewards[-1][number] = float(np.float32(response["reward"]))
            elif counts[response["source"]]:
                missing.append((index, number))
    keys = {pair: response_key(name, dataset[pair[0]], pair[1]) for pair in missing}
    todo = [pair for pair in missing if keys[pair] not in file.known]
    at_once = _AT_ONCE * ranks
    for start in tqdm(
        range(0, len(todo), at_once), desc="Scoring given responses", disable=not progress
    ):
        part = todo[start : start + at_once]
        # trl gathers rewards, so that every process must score as many: the last one again.
        share = math.ceil(len(part) / ranks)
        padded = part + part[-1:] * (share * ranks - len(part))
        own = padded[rank * share : (rank + 1) * share]
        rows = [dataset[index] for index, _ in own]
        completions = [
            row["responses"][number]["completion"]
            for row, (_, number) in zip(rows, own, strict=True)
        ]
        found = score(rows, completions)[: len(part)]
        for pair, value in zip(part, found, strict=True):
            _check(name, pair, value, args)
        file.add({keys[pair]: value for pair, value in zip(part, found, strict=True)})
    for index, number in missing:
        rewards[index][number] = value = file.known[keys[index, number]]
        _check(name, (index, number), value, args)
    return row_dataset(dataset, {ROW_COLUMN: range(len(dataset)), GIVEN_REWARDS: rewards})


def _check(name: str, pair: Pair, value: float, args: GFTConfig) -> None:
    if math.isinf(value) or (math.isnan(value) and args.on_unscored == "error"):
        raise ValueError(
            f"{name}, row {pair[0]}, response {pair[1]}: the reward is {value} (None counts as "
            "NaN). Rewards must be finite; on_unscored='leave_out' leaves responses without any out"
        )


def _responses(dataset: Dataset) -> list[list[dict[str, Any]]]:
    return [row.get("responses") or [] for row in dataset]


class RewardFile:
    """Rewards by key; NaN where no reward function applied.

    Args:
        folder: of the run.
        resumed: read what is there; else begin anew.
        writes: whether this process writes.

    """

    def __init__(self, folder: str | Path, *, resumed: bool, writes: bool) -> None:
        self._path, self._writes = Path(folder) / FILE_NAME, writes
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


def response_key(name: str, row: Mapping[str, Any], number: int) -> str:
    """Digest of a response with everything that reward functions see of its row."""
    seen = {column: value for column, value in row.items() if column != "responses"}
    response = row["responses"][number]["completion"]
    text = json.dumps([name, seen, response], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
