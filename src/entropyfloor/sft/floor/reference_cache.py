"""The reference model on disk: what losses and the floor ask of it, at every scored position.

Computed once, while the model in training still is the reference (before the first step, or at the
onset), or of another model that is then let go: afterwards a reference costs neither a second model
nor a second forward pass. The label's log-probability and those of the k most likely tokens are
exact, the rest of the vocabulary is one event (`entropyfloor_losses.ReferenceTopK`), so the KL is a
little low. With k = 0 only the label's is kept: 4 bytes a token.

    meta.json           k, fingerprint of the reference, number of parts; written last
    documents-R.jsonl   of process R: what the part is of, then a document a line
    entries-R.bin       a row per scored position: float32 log-probability of the label, int32 [k]
                        tokens, most likely first, float32 [k] their log-probabilities

A document is a row of a padded batch, or what `position_ids` mark in a padding-free one. Its next
tokens must not depend on its neighbours in the batch. A batch's entries are on disk before its
documents are named: what is named is whole, whenever the process was killed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from entropyfloor.io import append_jsonl, read_jsonl, save_json
from entropyfloor.models.lm_head import final_logits
from entropyfloor.sft.floor.documents import Document, documents_of
from entropyfloor.sft.floor.reference_model import (
    OnsetModel,
    ReferenceModel,
    cannot_resume,
    fingerprint,
)
from entropyfloor_losses import ReferenceTopK

logger = logging.getLogger(__name__)

ONSET_FILE_NAME = "floor_reference.json"
_META = "meta.json"
_VERSION = 2  # of the files
_CHUNK_BYTES = 64 * 2**20  # logits of one chunk


def _entry(k: int) -> np.dtype[Any]:
    """A row of the cache."""
    return np.dtype([("label", "<f4"), ("tokens", "<i4", (k,)), ("log_probs", "<f4", (k,))])


class ReferenceCache:
    """Looks up documents; a reference of a `LossHead`.

    Args:
        folder: a complete cache.
        reference: fingerprint of the model that it has to be of.
        k: tokens kept per position.

    Raises:
        ValueError: it is of another model, or has another k.

    """

    def __init__(self, folder: Path, *, reference: str, k: int) -> None:
        meta = json.loads((folder / _META).read_text())
        for name, wanted in (("reference", reference), ("k", k), ("version", _VERSION)):
            if meta.get(name) != wanted:
                raise ValueError(
                    f"{folder} caches {name} {meta.get(name)!r} and this run has {wanted!r}; give "
                    "another reference_cache, or remove this one"
                )
        self._folder, self._k = folder, k
        self._entries: list[np.ndarray] = []
        self._locations: dict[str, tuple[int, slice]] = {}
        for rank in range(meta["parts"]):
            part = _Part(folder, rank, reference=reference, k=k)
            self._entries.append(part.entries())
            self._locations.update({key: (rank, rows) for key, rows in part.rows.items()})

    @staticmethod
    def complete(folder: Path) -> bool:
        """Whether a cache was finished in ``folder``."""
        return (folder / _META).is_file()

    def __call__(
        self, targets: Tensor, *, documents: Sequence[Document] | None = None, **inputs: Any
    ) -> ReferenceTopK:
        """The reference at ``targets`` ``[batch, length]``; ignored positions hold anything.

        Without the ``documents`` of a `DocumentCollator` the host waits for the device, to read
        them off.
        """
        entries = np.zeros(targets.shape, dtype=_entry(self._k))
        for document in documents_of(targets, inputs) if documents is None else documents:
            if document.key not in self._locations:
                raise ValueError(
                    f"a row of the training set is not in {self._folder}: was the data or its "
                    "preparation changed? Remove the cache, or give another reference_cache"
                )
            rank, rows = self._locations[document.key]
            entries[document.row, document.scored] = self._entries[rank][rows]
        tokens = _without_waiting(entries["tokens"].astype(np.int64), targets.device)
        log_probs, of_labels = (
            _without_waiting(entries[name].copy(), targets.device)
            for name in ("log_probs", "label")
        )
        return ReferenceTopK(tokens, log_probs, of_labels)


def _without_waiting(values: np.ndarray, device: torch.device) -> Tensor:
    """On ``device``; of pageable memory a GPU's host would wait until it is there."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class CachedOnset(OnsetModel):
    """No reference until `capture`, then a cache of the model of that moment.

    Args:
        trainer: a SEDTrainer; ``reference_cache`` is the folder.

    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.model)
        self._trainer, self._folder = trainer, Path(trainer.args.reference_cache)
        self._k = trainer.args.reference_top_k
        self._cache: ReferenceCache | None = None
        self._fingerprint = ""

    @property
    def captured(self) -> bool:
        """Whether there is a reference."""
        return self._cache is not None

    def check_folder(self, *, resumed: bool) -> None:
        """Refuse what cannot be cached, before the first step.

        Raises:
            ValueError: a streamed training set, or the cache of another run.

        """
        _check_whole(self._trainer)
        if ReferenceCache.complete(self._folder) and not resumed and not self.captured:
            raise ValueError(
                f"reference_cache {self._folder} holds the cache of another run, and an onset's "
                "is of one run; remove it, give another folder, or resume that run"
            )

    def capture(self) -> None:
        """Make the model as it is now the reference: a pass over the training set."""
        which = fingerprint(self.trained, adapters=True)
        model = ReferenceModel(self.trained)
        _cache_datasets(self._trainer, model, self._folder, which=which, k=self._k)
        self._open(which)

    def save(self, checkpoint: Path, *, main: bool = True) -> None:
        """Write which cache it is; the cache stays where it is."""
        if self.captured and main:
            which = {"reference": self._fingerprint, "folder": str(self._folder)}
            save_json(checkpoint / ONSET_FILE_NAME, which)

    def load(self, checkpoint: Path) -> None:
        """Go on with the cache of a checkpoint.

        Raises:
            ValueError: there is no file, or its cache is not in the folder.

        """
        path = checkpoint / ONSET_FILE_NAME
        if not path.is_file():
            raise cannot_resume(path, "is missing")
        which = json.loads(path.read_text())
        if not ReferenceCache.complete(self._folder):
            raise cannot_resume(self._folder, f"has no cache (the run had {which['folder']})")
        self._open(which["reference"])

    def _open(self, which: str) -> None:
        self._cache = ReferenceCache(self._folder, reference=which, k=self._k)
        self._fingerprint = which

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> ReferenceTopK:  # type: ignore[override]
        """The reference at ``targets`` ``[batch, length]``."""
        assert self._cache is not None
        return self._cache(targets, **kwargs)


def cached_reference(
    trainer: Any, reference: ReferenceModel, folder: Path, *, k: int, evaluation: bool = False
) -> ReferenceCache:
    """What takes the place of ``reference`` when training begins: its cache, made if missing.

    Args:
        trainer: of the data; no random state is consumed.
        reference: good until the first step.
        folder: of the cache.
        k: most likely tokens that are kept per position.
        evaluation: of the evaluation sets too.

    Raises:
        ValueError: a streamed set, or the cache of another model or k.

    """
    _check_whole(trainer)
    which = fingerprint(reference.model)
    if not ReferenceCache.complete(folder):
        _cache_datasets(trainer, reference, folder, which=which, k=k, evaluation=evaluation)
    return ReferenceCache(folder, reference=which, k=k)


def _check_whole(trainer: Any) -> None:
    if not isinstance(trainer.train_dataset, Dataset):
        raise ValueError(
            "a reference on disk is of the whole training set, and a streamed set can be read "
            "once; load it whole, or choose a loss, and no reference_cache, that does without"
        )


def _cache_datasets(
    trainer: Any,
    reference: ReferenceModel,
    folder: Path,
    *,
    which: str,
    k: int,
    evaluation: bool = False,
) -> None:
    """Cache the model as it is on a trainer's data; its processes share the work."""
    accelerator = trainer.accelerator
    datasets = [trainer.train_dataset]
    if evaluation and trainer.eval_dataset is not None:
        others = trainer.eval_dataset
        datasets += others.values() if isinstance(others, dict) else [others]
    what = f"the reference's {k} most likely tokens" if k else "the reference's log-probabilities"
    logger.info(f"caching {what} in {folder}")
    batches = tqdm(
        itertools.chain.from_iterable(map(trainer.get_test_dataloader, datasets)),
        desc=what,
        disable=trainer.args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    with torch.random.fork_rng():
        write_cache(
            folder,
            (trainer._prepare_inputs(batch) for batch in batches),
            reference,
            which=which,
            k=k,
            rank=accelerator.process_index,
            autocast=trainer.compute_loss_context_manager,
        )
    accelerator.wait_for_everyone()
    if accelerator.process_index == 0:
        finish_cache(folder, which=which, k=k, parts=accelerator.num_processes)
    accelerator.wait_for_everyone()


def write_cache(
    folder: Path,
    batches: Iterable[dict[str, Any]],
    reference: ReferenceModel,
    *,
    which: str,
    k: int,
    rank: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Write the part of one process: the reference at every scored position.

    Written as it goes: after an interruption only what is missing is computed. What is there of
    another reference, or another k, is replaced.

    Args:
        folder: made if missing.
        batches: collated inputs with ``labels``; of several processes, this one's share.
        reference: computes the hidden states.
        which: its fingerprint.
        k: at most the vocabulary.
        rank: this process.
        autocast: makes the context of the reference's forward, not of its head's.

    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _META).unlink(missing_ok=True)
    part = _Part(folder, rank, reference=which, k=k)
    part.open()
    for batch in batches:
        documents = {d.key: d for d in documents_of(batch["labels"][:, 1:], batch)}
        missing = [d for key, d in documents.items() if key not in part.rows]
        if missing:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with autocast():
                hidden = reference(batch["labels"], **inputs, use_cache=False).hidden[:, :-1]
            states = {
                d.key: hidden[d.row, torch.as_tensor(d.scored, device=hidden.device)]
                for d in missing
            }
            part.append(
                {d.key: _entries(reference.model, states[d.key], d.labels, k) for d in missing}
            )


def finish_cache(folder: Path, *, which: str, k: int, parts: int) -> None:
    """Say that the cache is complete; called once, when every process has written its part."""
    meta = {"reference": which, "k": k, "version": _VERSION, "parts": parts}
    save_json(folder / _META, meta)


@torch.no_grad()
def _entries(model: Any, states: Tensor, labels: Tensor, k: int) -> np.ndarray:
    """Rows of the cache for hidden states ``[rows, H]`` and labels ``[rows]``."""
    entries = np.empty(len(states), dtype=_entry(k))
    chunk = max(1, _CHUNK_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    for start in range(0, len(states), chunk):
        rows = slice(start, start + chunk)
        log_probs = final_logits(model, states[rows]).log_softmax(-1)
        top = log_probs.topk(k, dim=-1)
        entries["tokens"][rows] = top.indices.cpu().numpy()
        entries["log_probs"][rows] = top.values.float().cpu().numpy()
        of_labels = log_probs.gather(1, labels[rows, None].to(log_probs.device))
        entries["label"][rows] = of_labels.squeeze(1).float().cpu().numpy()
    return entries


class _Part:
    """What process ``rank`` has written to a cache; of another reference or k it counts as nothing.

    ``rows`` maps the key of a document to its rows.
    """

    def __init__(self, folder: Path, rank: int, *, reference: str, k: int) -> None:
        self._k, self._of = k, {"reference": reference, "k": k, "version": _VERSION}
        self._index, self._file = folder / f"documents-{rank}.jsonl", folder / f"entries-{rank}.bin"
        self.rows: dict[str, slice] = {}
        self._end = 0
        lines = read_jsonl(self._index)
        self._begun = lines[:1] == [self._of]
        for line in lines[1:] if self._begun else []:
            self._add(line["document"], line["rows"])

    def _add(self, key: str, count: int) -> None:
        self.rows[key] = slice(self._end, self._end + count)
        self._end += count

    def entries(self) -> np.ndarray:
        """All rows, mapped from disk."""
        if not self._end:
            return np.zeros(0, _entry(self._k))
        return np.memmap(self._file, _entry(self._k), "r", shape=(self._end,))

    def open(self) -> None:
        """Make the files, or drop what a killed process left of a batch in them."""
        # First the index: it never names what is not there, also if this is where the kill comes.
        if self._begun:
            read_jsonl(self._index, repair=True)
        else:
            self._index.unlink(missing_ok=True)
            append_jsonl(self._index, [self._of])
        with self._file.open("ab") as file:
            file.truncate(self._end * _entry(self._k).itemsize)

    def append(self, documents: Mapping[str, np.ndarray]) -> None:
        """Add a batch: the key of a document -> its rows."""
        with self._file.open("ab") as file:
            file.write(np.concatenate(list(documents.values())).tobytes())
            file.flush()
            os.fsync(file.fileno())
        append_jsonl(
            self._index, ({"document": key, "rows": len(rows)} for key, rows in documents.items())
        )
        for key, rows in documents.items():
            self._add(key, len(rows))
