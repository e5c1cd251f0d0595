"""Rows of group fine-tuning: checked, scored, drawn from.

    {"prompt": str or messages,
     "responses": [{"source": "expert", "completion": str or messages, "reward": float or None}],
     ...further columns for the reward functions}

Everything that can be wrong with a row is found before the first step, and named by the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.given_responses import GIVEN
from entropyfloor.rollouts.messages import text_messages
from entropyfloor.rollouts.prompts import ROW_COLUMN, PromptSet, checked_row
from entropyfloor.rollouts.teacher_forced import encode_held_out

logger = get_logger(__name__)

GIVEN_REWARDS = "_given_rewards"
OURS = (ROW_COLUMN, GIVEN_REWARDS, "responses")  # two of them are added to the dataset


def check_rows(dataset: Any, args: GFTConfig, *, num_self: int, name: str) -> None:
    """Raise ValueError at the first bad row.

    Args:
        dataset: with columns ``prompt`` and ``responses`` (which may be missing with own samples).
        args: how many responses of each source are drawn.
        num_self: own samples per prompt in this dataset's steps.
        name: of the dataset, for errors.

    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is {type(dataset).__name__}; group fine-tuning scores all given responses "
            "before the first step, so it needs a datasets.Dataset, which can be read twice"
        )
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    present = columns_of(dataset)
    if "prompt" not in present:
        raise ValueError(f"{name} has the columns {present}; 'prompt' is missing")
    has_given = "responses" in present
    if not has_given and not num_self:
        raise ValueError(f"{name} has no column 'responses' and num_self is 0: nothing to train on")
    counts = args.response_counts()
    left_out = dict.fromkeys(GIVEN, 0)
    for index, row in enumerate(dataset):
        _check_row(row, f"{name}, row {index}")
        given = [response["source"] for response in row.get("responses") or []]
        drawn = {source: min(counts[source], given.count(source)) for source in GIVEN}
        for source in GIVEN:
            left_out[source] += given.count(source) if not counts[source] else 0
        size = num_self + sum(drawn.values())
        if size == 0:
            raise ValueError(
                f"{name}, row {index} has no response to train on: it has "
                f"{', '.join(given) or 'none'}, and at most {counts} are taken and "
                f"{num_self} own samples. Leave it out or raise num_self"
            )
        if size == 1 and args.group_of_one == "error" and args.advantages:
            raise ValueError(
                f"{name}, row {index} gives a group of one response, which has nothing to be "
                "compared with. Raise num_self, or choose group_of_one='imitate' (a given "
                "response counts with advantage 1) or 'skip'"
            )
    for source, count in left_out.items():
        if count:
            logger.warning(f"{name}: {count} {source} responses are not used, num_{source} is 0")


def _check_row(row: Mapping[str, Any], where: str) -> None:
    prompt = checked_row(row, where)["prompt"]
    responses = row.get("responses") or []
    if not isinstance(responses, list):
        raise ValueError(f"{where}: 'responses' is a list of objects, got {responses!r:.80}")
    for number, response in enumerate(responses):
        part = f"{where}, response {number}"
        if not isinstance(response, Mapping):
            raise ValueError(f"{part} is {response!r:.80}; it must be an object with source")
        if response.get("source") not in GIVEN:
            raise ValueError(
                f"{part}: the source is {response.get('source')!r}; choose one of "
                f"{', '.join(GIVEN)} (own samples are drawn by the trainer)"
            )
        completion = response.get("completion")
        if not completion:
            raise ValueError(f"{part}: the completion is empty ({completion!r})")
        if isinstance(completion, list):
            text_messages(completion, f"{part}, completion")
        if not isinstance(completion, str | list) or type(completion) is not type(prompt):
            raise ValueError(
                f"{part}: prompt is {type(prompt).__name__} and completion "
                f"{type(completion).__name__}; both must be text, or both lists of messages"
            )
        reward = response.get("reward")
        if reward is not None and not (isinstance(reward, int | float) and math.isfinite(reward)):
            raise ValueError(
                f"{part}: the cached reward is {reward}; it must be finite, or missing to be "
                "computed"
            )


def columns_of(dataset: Dataset) -> list[str]:
    """Names of a dataset's columns, which that of a ``PromptSet`` knows by its rows only."""
    return list(dataset[0]) if len(dataset) else dataset.column_names


def encode_given(
    rows: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Any],
    tokenizer: Any,
) -> list[list[int]]:
    """Token ids of given responses, the end-of-sequence token included.

    Args:
        rows: with ``prompt`` and what its chat template needs, one for each completion.
        prompt_ids: tokens of their prompts, as for generation.
        completions: text or messages.
        tokenizer: of the model.

    """
    whole = [{**row, "completion": c} for row, c in zip(rows, completions, strict=True)]
    if not whole:
        return []
    found = encode_held_out(PromptSet(tuple(whole)), prompt_ids, tokenizer)
    return [list(completion.ids) for completion in found]


def draw(row: Mapping[str, Any], counts: Mapping[str, int], *, seed: int, step: int) -> list[int]:
    """Which given responses take part in a step, as indices.

    Where a row has more of a source than are taken, which ones follows from seed, step and row
    alone: the same on any number of processes, and after a resume.
    """
    given = row.get("responses") or []
    generator = np.random.default_rng((seed, step, row[ROW_COLUMN]))
    chosen: list[int] = []
    for source in GIVEN:
        present = [n for n, response in enumerate(given) if response["source"] == source]
        if len(present) > counts[source]:
            present = sorted(generator.choice(present, counts[source], replace=False).tolist())
        chosen.extend(present)
    return chosen


def without_ours(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what the trainer keeps in it."""
    return {name: value for name, value in row.items() if name not in OURS}


def named_datasets(train: Any, evaluation: Any, args: GFTConfig) -> Iterator[tuple[str, Any, int]]:
    """(name, dataset, own samples per prompt) of a trainer's datasets."""
    yield "train_dataset", train, args.num_self
    own = args.num_generations_eval or args.num_self
    if isinstance(evaluation, dict):
        yield from ((f"eval_dataset {key!r}", found, own) for key, found in evaluation.items())
    elif evaluation is not None:
        yield "eval_dataset", evaluation, own


def check_all_cached(dataset: Dataset, args: GFTConfig, *, num_self: int, name: str) -> None:
    """Raise ValueError where a reward would have to be computed."""
    way_out = "pass reward_funcs, or num_self=0 and rows whose responses all carry a reward"
    if num_self:
        raise ValueError(f"without reward_funcs own samples cannot be scored: {way_out}")
    counts = args.response_counts()
    for index, row in enumerate(dataset):
        for number, response in enumerate(row["responses"] or []):
            if counts[response["source"]] and response.get("reward") is None:
                raise ValueError(
                    f"{name}, row {index}, response {number} carries no reward, and there are no "
                    f"reward_funcs: {way_out}"
                )
