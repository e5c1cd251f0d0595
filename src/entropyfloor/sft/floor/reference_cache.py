"""The reference model on disk: its k most likely tokens at every scored position of the data.

Computed once, while the model in training still is the reference (before the first step, or at the
onset): afterwards an anchor costs neither a second model nor a second forward pass. The k tokens
are exact, the rest of the vocabulary is one event (`entropyfloor_losses.ReferenceTopK`), so
the KL is a little low.

    meta.json           k, fingerprint of the reference, number of parts; written last
    documents-R.jsonl   of process R: what the part is of, then a document a line
    entries-R.bin       [rows, k] of (int32 token, float32 log-probability), most likely first; a
                        row per scored position

A document is a row of a padded batch, or what `position_ids` mark in a padding-free one. Its next
tokens must not depend on its neighbours in the batch. A batch's entries are on disk before its
documents are named: what is named is whole, whenever the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from entropyfloor.io import append_jsonl, read_jsonl, save_json
from entropyfloor.models.logit_transform import final_logits
from entropyfloor.sft.floor.reference_model import OnsetModel, ReferenceModel, cannot_resume
from entropyfloor_losses import IGNORE_INDEX, ReferenceTopK

logger = logging.getLogger(__name__)

ONSET_FILE_NAME = "floor_reference.json"
_META = "meta.json"
_ENTRY = np.dtype([("token", "<i4"), ("log_prob", "<f4")])
_CHUNK_BYTES = 64 * 2**20  # logits of one chunk


class ReferenceCache:
    """Looks up documents; the reference of a `LossHead`.

    Args:
        folder: a complete cache.
        reference: fingerprint of the model that it has to be of.
        k: tokens kept per position.

    Raises:
        ValueError: it is of another model, or has another k.

    """

    def __init__(self, folder: Path, *, reference: str, k: int) -> None:
        meta = json.loads((folder / _META).read_text())
        for name, wanted in (("reference", reference), ("k", k)):
            if meta[name] != wanted:
                raise ValueError(
                    f"{folder} caches {name} {meta[name]!r} and this run has {wanted!r}; give "
                    "another floor_reference_cache, or remove this one"
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

    def __call__(self, targets: Tensor, **inputs: Any) -> ReferenceTopK:
        """The reference at ``targets`` ``[batch, length]``; ignored positions hold anything."""
        entries = np.zeros((*targets.shape, self._k), dtype=_ENTRY)
        for document in _documents(targets, inputs):
            if document.key not in self._locations:
                raise ValueError(
                    f"a row of the training set is not in {self._folder}: was the data or its "
                    "preparation changed? Remove the cache, or give another floor_reference_cache"
                )
            rank, rows = self._locations[document.key]
            entries[document.row, document.scored] = self._entries[rank][rows]
        tokens = torch.from_numpy(entries["token"].astype(np.int64)).to(targets.device)
        log_probs = torch.from_numpy(entries["log_prob"].copy()).to(targets.device)
        return ReferenceTopK(tokens, log_probs)


class CachedOnset(OnsetModel):
    """No reference until `capture`, then a cache of the model of that moment.

    Args:
        trainer: a SEDTrainer; ``floor_reference_cache`` is the folder.

    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.model)
        self._trainer, self._folder = trainer, Path(trainer.args.floor_reference_cache)
        self._cache: ReferenceCache | None = None
        self._fingerprint = ""

    @property
    def captured(self) -> bool:
        """Whether there is a reference."""
        return self._cache is not None

    def capture(self) -> None:
        """Make the model as it is now the reference: a pass over the training set."""
        reference = fingerprint(self.trained, adapters=True)
        cache_training_set(self._trainer, ReferenceModel(self.trained), reference)
        self._open(reference)

    def save(self, checkpoint: Path) -> None:
        """Write which cache it is; the cache stays where it is."""
        if self.captured:
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

    def _open(self, reference: str) -> None:
        k = self._trainer.args.floor_reference_top_k
        self._cache = ReferenceCache(self._folder, reference=reference, k=k)
        self._fingerprint = reference

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> ReferenceTopK:  # type: ignore[override]
        """The reference at ``targets`` ``[batch, length]``."""
        assert self._cache is not None
        return self._cache(targets, **kwargs)


def cached_reference(trainer: Any, reference: ReferenceModel, *, resumed: bool) -> Any:
    """What takes the place of ``reference`` when training begins: its cache, made if missing.

    Args:
        trainer: a SEDTrainer with ``floor_reference_cache``.
        reference: good until the first step; an onset is returned as it is.
        resumed: whether the run goes on from a checkpoint.

    Raises:
        ValueError: a streamed training set, or the cache of another run, model or k.

    """
    if not isinstance(trainer.train_dataset, Dataset):
        raise ValueError(
            "floor_reference_cache reads the whole training set at once, and a streamed set can "
            "be read once; load it whole, or leave floor_reference_cache out"
        )
    folder = Path(trainer.args.floor_reference_cache)
    if isinstance(reference, OnsetModel):
        if ReferenceCache.complete(folder) and not resumed and not reference.captured:
            raise ValueError(
                f"floor_reference_cache {folder} holds the cache of another run, and an onset's "
                "is of one run; remove it, give another folder, or resume that run"
            )
        return reference
    which = fingerprint(reference.model)
    if not ReferenceCache.complete(folder):
        cache_training_set(trainer, reference, which)
    return ReferenceCache(folder, reference=which, k=trainer.args.floor_reference_top_k)


def cache_training_set(trainer: Any, reference: ReferenceModel, which: str) -> None:
    """Cache the reference on a trainer's training set; no random state is consumed.

    Args:
        trainer: its processes share the work.
        reference: its model as it is.
        which: fingerprint of the reference.

    """
    args, accelerator = trainer.args, trainer.accelerator
    k = args.floor_reference_top_k
    logger.info(f"caching the reference's {k} most likely tokens in {args.floor_reference_cache}")
    batches = tqdm(
        trainer.get_test_dataloader(trainer.train_dataset),
        desc=f"the reference's {k} most likely tokens",
        disable=args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    with torch.random.fork_rng():
        write_cache(
            Path(args.floor_reference_cache),
            (trainer._prepare_inputs(batch) for batch in batches),
            reference,
            which=which,
            k=k,
            rank=accelerator.process_index,
            autocast=trainer.compute_loss_context_manager,
        )
    accelerator.wait_for_everyone()
    if accelerator.process_index == 0:
        finish_cache(
            Path(args.floor_reference_cache), which=which, k=k, parts=accelerator.num_processes
        )
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
    """Write the part of one process: the k most likely tokens at every scored position.

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
        documents = {d.key: d for d in _documents(batch["labels"][:, 1:], batch)}
        missing = [d for key, d in documents.items() if key not in part.rows]
        if missing:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with autocast():
                hidden = reference(batch["labels"], **inputs, use_cache=False).hidden[:, :-1]
            states = {d.key: hidden[d.row, d.scored.to(hidden.device)] for d in missing}
            part.append({key: _most_likely(reference.model, s, k) for key, s in states.items()})


def finish_cache(folder: Path, *, which: str, k: int, parts: int) -> None:
    """Say that the cache is complete; called once, when every process has written its part."""
    save_json(folder / _META, {"reference": which, "k": k, "parts": parts})


def fingerprint(model: Any, *, adapters: bool = False) -> str:
    """16 hex digits that differ between models whose parameters differ.

    Args:
        model: with or without adapters.
        adapters: whether they count.

    """
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if not adapters and (".lora_" in name or ".modules_to_save." in name):
            continue
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        flat = value.detach().double()
        digest.update(f"{plain} {tuple(value.shape)} {float(flat.sum())}".encode())
        digest.update(f"{float(flat.abs().sum())}".encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _most_likely(model: Any, states: Tensor, k: int) -> np.ndarray:
    """Entries ``[rows, k]`` for hidden states ``[rows, H]``."""
    entries = np.empty((len(states), k), dtype=_ENTRY)
    chunk = max(1, _CHUNK_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    for start in range(0, len(states), chunk):
        rows = slice(start, start + chunk)
        top = final_logits(model, states[rows]).log_softmax(-1).topk(k, dim=-1)
        entries["token"][rows] = top.indices.cpu().numpy()
        entries["log_prob"][rows] = top.values.float().cpu().numpy()
    return entries


class _Part:
    """What process ``rank`` has written to a cache; of another reference or k it counts as nothing.

    ``rows`` maps the key of a document to its rows.
    """

    def __init__(self, folder: Path, rank: int, *, reference: str, k: int) -> None:
        self._k, self._of = k, {"reference": reference, "k": k}
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
        """All rows ``[rows, k]``, mapped from disk."""
        shape = (self._end, self._k)
        if not self._end:
            return np.zeros(shape, _ENTRY)
        return np.memmap(self._file, _ENTRY, "r", shape=shape)

    def open(self) -> None:
        """Make the files, or drop what a killed process left of a batch in them."""
        # First the index: it never names what is not there, also if this is where the kill comes.
        if self._begun:
            read_jsonl(self._index, repair=True)
        else:
            self._index.unlink(missing_ok=True)
            append_jsonl(self._index, [self._of])
        with self._file.open("ab") as file:
            file.truncate(self._end * self._k * _ENTRY.itemsize)

    def append(self, documents: Mapping[str, np.ndarray]) -> None:
        """Add a batch: the key of a document -> its entries ``[rows, k]``."""
        with self._file.open("ab") as file:
            file.write(np.concatenate(list(documents.values())).tobytes())
            file.flush()
            os.fsync(file.fileno())
        append_jsonl(
            self._index, ({"document": key, "rows": len(rows)} for key, rows in documents.items())
        )
        for key, rows in documents.items():
            self._add(key, len(rows))


@dataclass(frozen=True)
class _Document:
    """A document of a batch: its digest, its row, the columns of its scored targets."""

    key: str
    row: int
    scored: Tensor


def _documents(targets: Tensor, inputs: dict[str, Any]) -> Iterator[_Document]:
    """Documents with a scored target; tokens and targets are looked at on the CPU."""
    tokens, labels = inputs["input_ids"].cpu(), targets.cpu()
    positions = inputs.get("position_ids")
    for row in range(len(tokens)):
        starts = [0]
        if positions is not None:
            starts = (positions[row].cpu() == 0).nonzero().squeeze(1).tolist()
        for start, stop in zip(starts, [*starts[1:], tokens.shape[1]], strict=True):
            of_document = labels[row, start : stop - 1]
            scored = (of_document != IGNORE_INDEX).nonzero().squeeze(1)
            if not len(scored):
                continue
            # Up to the last scored target: what follows is padding, which batches add differently.
            last = int(scored[-1]) + 1
            digest = hashlib.blake2b(
                tokens[row, start : start + last].numpy().tobytes(), digest_size=16
            )
            digest.update(of_document[:last].numpy().tobytes())
            yield _Document(digest.hexdigest(), row, scored + start)
