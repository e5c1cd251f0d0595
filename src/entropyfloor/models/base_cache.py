"""The base model on disk: its k most likely tokens at every scored position of the training set.

Computed once, while the model in training still is the base (before the first step, or at the onset
of a floor): afterwards an anchor costs neither a second model nor a second forward pass. What is
kept is exact for the k tokens; the rest is one bucket (`entropyfloor_losses.BaseTopK`), so the KL
is a little low.

    cache/meta.json          k, fingerprint of the base, how many shards
    cache/keys-R.json        digest of a document's tokens and labels -> [first row, rows]
    cache/indices-R.npy      int32   [rows, k]      one row per scored token
    cache/log_probs-R.npy    float32 [rows, k]

A document is a row of a padded batch, or what `position_ids` mark in a padding-free one. Its next
tokens must not depend on its neighbours in the batch; R is the process that wrote it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropyfloor.models.logit_transform import final_logits
from entropyfloor_losses import IGNORE_INDEX, BaseTopK

_CHUNK_BYTES = 64 * 2**20  # logits of one chunk
_META = "meta.json"
_ARRAYS = ("indices", "log_probs")


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


class CachedBase:
    """Looks up documents; a `LossHead`'s base.

    Args:
        folder: a complete cache.
        base: fingerprint of the base.
        k: tokens kept per position.

    Raises:
        ValueError: another base or another k.

    """

    def __init__(self, folder: Path, *, base: str, k: int) -> None:
        meta = json.loads((folder / _META).read_text())
        for name, wanted in (("base", base), ("k", k)):
            if meta[name] != wanted:
                raise ValueError(
                    f"{folder} caches {name} {meta[name]!r} and this run has {wanted!r}; give "
                    "another floor_base_cache, or remove this one"
                )
        self._folder, self._k = folder, k
        self._shards, self._places = [], {}
        for rank in range(meta["shards"]):
            arrays = [np.load(folder / f"{n}-{rank}.npy", mmap_mode="r") for n in _ARRAYS]
            self._shards.append(arrays)
            keys = json.loads((folder / f"keys-{rank}.json").read_text())
            self._places.update({key: (rank, *place) for key, place in keys.items()})

    @staticmethod
    def complete(folder: Path) -> bool:
        """Whether a cache was finished in ``folder``."""
        return (folder / _META).is_file()

    def __call__(self, targets: Tensor, **inputs: Any) -> BaseTopK:
        """The base at ``targets`` ``[batch, length]``; positions that are ignored hold anything."""
        found = [np.zeros((*targets.shape, self._k), dtype=t) for t in (np.int32, np.float32)]
        for document in _documents(targets, inputs):
            place = self._places.get(document.key)
            if place is None:
                raise ValueError(
                    f"a row of the training set is not in {self._folder}: was the data or its "
                    "preparation changed? Remove the cache, or give another floor_base_cache"
                )
            rank, first, count = place
            row, columns = document.row, document.scored
            for array, stored in zip(found, self._shards[rank], strict=True):
                array[row, columns] = stored[first : first + count]
        indices, log_probs = (torch.from_numpy(array).to(targets.device) for array in found)
        return BaseTopK(indices.long(), log_probs)


def write_cache(
    folder: Path,
    batches: Iterable[dict[str, Any]],
    *,
    hidden_of: Callable[[dict[str, Any]], Tensor],
    model: Any,
    base: str,
    k: int,
    rank: int,
    ranks: int,
    wait: Callable[[], None],
) -> None:
    """Compute the base's k most likely tokens at every scored position of ``batches``.

    Args:
        folder: made if missing; complete once meta.json is there. A cache in it is replaced.
        batches: collated inputs with ``labels``; on several processes, this one's share.
        hidden_of: last hidden states ``[batch, length, H]`` for a batch, without gradient.
        model: the base; only its head is used here.
        base: its fingerprint.
        k: at most the vocabulary.
        rank: this process.
        ranks: number of processes.
        wait: barrier between them.

    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _META).unlink(missing_ok=True)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
    keys: dict[str, list[int]] = {}
    written = 0
    for batch in batches:
        targets = batch["labels"][:, 1:]
        documents = [d for d in _documents(targets, batch) if d.key not in keys]
        if not documents:
            continue
        hidden = hidden_of(batch)[:, :-1]
        for document in documents:
            if document.key in keys:
                continue
            states = hidden[document.row, document.scored.to(hidden.device)]
            keys[document.key] = [written, len(states)]
            written += len(states)
            for name, values in zip(_ARRAYS, _most_likely(model, states, k), strict=True):
                rows[name].append(values)
    for name, dtype in zip(_ARRAYS, (np.int32, np.float32), strict=True):
        empty = np.zeros((0, k), dtype)
        np.save(folder / f"{name}-{rank}.npy", np.concatenate([empty, *rows[name]]).astype(dtype))
    (folder / f"keys-{rank}.json").write_text(json.dumps(keys))
    wait()
    if rank == 0:
        (folder / _META).write_text(json.dumps({"base": base, "k": k, "shards": ranks}))
    wait()


def _most_likely(model: Any, states: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    chunk = max(1, _CHUNK_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    parts = [
        final_logits(model, states[start : start + chunk]).log_softmax(-1).topk(k, dim=-1)
        for start in range(0, len(states), chunk)
    ]
    return (
        torch.cat([p.indices for p in parts]).cpu().numpy().astype(np.int32),
        torch.cat([p.values for p in parts]).cpu().numpy(),
    )


class _Document:
    """A document of a batch: its row, the columns of its scored targets, its digest."""

    def __init__(self, row: int, tokens: Tensor, targets: Tensor, scored: Tensor) -> None:
        self.row, self.scored = row, scored
        digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16)
        digest.update(targets.numpy().tobytes())
        self.key = digest.hexdigest()


def _documents(targets: Tensor, inputs: dict[str, Any]) -> Iterator[_Document]:
    """Documents with a scored target; tokens and targets are looked at on the CPU."""
    tokens, labels = inputs["input_ids"].cpu(), targets.cpu()
    positions = inputs.get("position_ids")
    for row in range(len(tokens)):
        if positions is not None:
            starts = (positions[row].cpu() == 0).nonzero().squeeze(1).tolist()
        else:
            starts = [0]
        for start, stop in zip(starts, [*starts[1:], tokens.shape[1]], strict=True):
            of_document = labels[row, start : stop - 1]
            scored = (of_document != IGNORE_INDEX).nonzero().squeeze(1)
            if not len(scored):
                continue
            # Up to the last scored target: what follows is padding, which batches add differently.
            last = int(scored[-1]) + 1
            yield _Document(
                row, tokens[row, start : start + last], of_document[:last], scored + start
            )
