"""Rollouts on disk while they are drawn, so that a killed screening goes on where it was.

    FOLDER/rollouts.json          what determines the rollouts; a run with other settings is refused
    FOLDER/rollouts-NAME.jsonl    one object per rollout, in the order drawn, scores included
    FOLDER/rollouts-NAME@1.jsonl  the same of process 1 where there are several
    FOLDER/sums-NAME.json         teacher-forced sums (held-out loss, KL), once they are known

A batch is one write followed by fsync, and its last line says so. Reading drops everything after
the last whole batch and cuts the file there: the batches that are left to draw are then the same
as if nothing had happened, and so are their numbers to the last bit. Batch size, the number of
samples and that of processes may change between runs: more samples extend what is there.

With several processes each writes a file of its own; the main one reads them all, whatever the
number was before, and is sent what the others draw.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from entropyfloor.io import append_jsonl, check_settings, read_jsonl, save_json, write_atomic
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import TokenSums

SCHEMA = "entropyfloor.rollouts"
_LAST = "last_of_batch"
_IDENTITY = ("prompt_index", "sample_index", "greedy")


class RolloutStore:
    """The rollouts of one checkpoint, in memory and, with a folder, on disk.

    The main process holds all of them, any other those that it has drawn itself.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        processes: Processes = Processes(),
        *,
        repair: bool = True,
    ) -> None:
        """Read what is there; ``repair`` cuts off half a batch, unless another run may write."""
        self._processes = processes
        self._file: Path | None = None
        self._sums_file: Path | None = None
        self._sent = 0
        self.rollouts: list[Rollout] = []
        self.rewards: list[float | None] = []
        if folder is None:
            return
        stem = _file_name(name)
        of_rank = "" if self._processes.main else f"@{self._processes.rank}"
        self._file = folder / f"rollouts-{stem}{of_rank}.jsonl"
        self._sums_file = folder / f"sums-{stem}.json"
        if self._processes.main:
            records = [
                record
                for file in [self._file, *sorted(folder.glob(f"rollouts-{stem}@*.jsonl"))]
                for record in read_jsonl(file, repair=repair, ends=lambda each: _LAST in each)
            ]
            # Two runs into one folder at once draw the same rollouts twice.
            once = {tuple(record[name] for name in _IDENTITY): record for record in records}
            self.rollouts += map(_rollout, once.values())
            self.rewards += (record["reward"] for record in once.values())

    @property
    def drawn(self) -> set[tuple[int, int, bool]]:
        """(prompt index, sample index, greedy) of every rollout that is there."""
        return {(r.prompt_index, r.sample_index, r.greedy) for r in self.rollouts}

    def collect(self) -> int:
        """Send what is new to the main process; there, how many rollouts came from others."""
        new = (self.rollouts[self._sent :], self.rewards[self._sent :])
        self._sent = len(self.rollouts)
        for rollouts, rewards in self._processes.to_main(([], []) if self._processes.main else new):
            self.rollouts.extend(rollouts)
            self.rewards.extend(rewards)
        return len(self.rollouts) - self._sent

    def append(self, batch: Sequence[Rollout], rewards: Sequence[float | None] | None) -> None:
        """Add one batch; on disk it is whole or absent."""
        scores: Sequence[float | None] = [None] * len(batch) if rewards is None else rewards
        self.rollouts.extend(batch)
        self.rewards.extend(scores)
        if self._file is None or not batch:
            return
        records = [_record(r, s) for r, s in zip(batch, scores, strict=True)]
        records[-1][_LAST] = True
        append_jsonl(self._file, records)

    def read_sums(self, key: list[Any] | None = None) -> dict[str, TokenSums] | None:
        """Sums that :meth:`write_sums` wrote; None if there are none, or of another ``key``."""
        if self._sums_file is None or not self._sums_file.is_file():
            return None
        document = json.loads(self._sums_file.read_text(encoding="utf-8"))
        if key is not None and document["of"] != key:
            return None
        return {
            name: TokenSums(tuple(value["sums"]), tuple(value["tokens"]))
            for name, value in document["sums"].items()
        }

    def write_sums(self, sums: dict[str, TokenSums], key: list[Any]) -> None:
        """Keep teacher-forced sums for the next run; ``key`` (JSON data) says what they are of."""
        if self._sums_file is not None and self._processes.main:
            values = {name: asdict(value) for name, value in sums.items()}
            text = json.dumps({"of": key, "sums": values}, ensure_ascii=False)  # may be infinite
            write_atomic(self._sums_file, text)


def what_determines(
    sampling: Sampling,
    prompts: PromptSet,
    reward: Callable[..., Any] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """JSON data that rollouts and scores depend on besides the checkpoint.

    Of ``sampling``, number of samples and batch size do not count. ``settings`` hold the reward's
    name, ``dtype``, ``device`` and ``engine``, among others.
    """
    drawn = asdict(sampling)
    del drawn["batch_size"], drawn["num_samples"]
    return {
        **drawn,
        "prompts and columns": prompts.full_digest,
        "reward's source file": source_digest(reward),
        **{name: settings[name] for name in ("reward", "dtype", "device", "engine")},
        **{name: settings[name] for name in ("engine_args",) if name in settings},
    }


def open_folder(folder: Path, *, determines: dict[str, Any], context: dict[str, Any]) -> None:
    """Make the folder, or check that what is in it was drawn with the same settings.

    ``determines`` is what rollouts and scores depend on; ``context`` what a report needs besides
    (prompts' texts, settings), where the last one wins. Both are JSON data.

    Raises:
        ValueError: the folder holds rollouts drawn otherwise.

    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "rollouts.json"
    if target.is_file():
        before = read_folder(folder)["determines"]
        check_settings(folder, before, determines, holds="holds rollouts drawn")
    elif any(folder.glob("rollouts-*.jsonl")):
        raise ValueError(
            f"{folder} holds rollouts but no rollouts.json that says how they were drawn; give "
            "another output directory, or remove this one"
        )
    save_json(target, {"schema": SCHEMA, "determines": determines, "context": context})


def read_folder(folder: Path) -> dict[str, Any]:
    """What :func:`open_folder` wrote: ``determines`` and ``context``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else.

    """
    target = folder / "rollouts.json"
    try:
        document = json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no rollouts.json; give the --output-dir of an earlier screening"
        ) from error
    except ValueError as error:
        raise ValueError(f"{target} is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{target} is not of schema {SCHEMA!r}; give a screening's --output-dir")
    return document


def checkpoint_digest(source: CheckpointSource) -> str:
    """16 hex digits that change when a checkpoint's files are written again (size and time)."""
    digest = hashlib.sha256()
    for each in [source, *([source.base] if source.base else [])]:
        for file in sorted(each.directory.glob("*")):
            if file.suffix in {".safetensors", ".json", ".jinja"}:
                stat = file.stat()
                digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def source_digest(function: Callable[..., Any] | None) -> str | None:
    """16 hex digits of the file that a reward is written in; None if it has none."""
    try:
        file = None if function is None else inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def _file_name(name: str) -> str:
    """A checkpoint's name as part of a file's; without ``@``, which marks a process."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    if safe == name:
        return safe
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"  # a/b and a_b are two


def _record(rollout: Rollout, reward: float | None) -> dict[str, Any]:
    return {
        "prompt_index": rollout.prompt_index,
        "sample_index": rollout.sample_index,
        "greedy": rollout.greedy,
        "text": rollout.text,
        "num_tokens": len(rollout.token_ids),
        "entropy_nats": float(rollout.entropies_nats.mean(dtype=float)),
        "truncated": rollout.truncated,
        "reward": reward,
        "token_ids": list(rollout.token_ids),
        # float32 as text of a double and back: not a bit is lost.
        "entropies_nats": [float(value) for value in rollout.entropies_nats],
    }


def _rollout(record: dict[str, Any]) -> Rollout:
    return Rollout(
        record["prompt_index"],
        record["sample_index"],
        tuple(record["token_ids"]),
        np.asarray(record["entropies_nats"], dtype=np.float32),
        record["text"],
        record["truncated"],
        record["greedy"],
    )
