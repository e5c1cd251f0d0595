"""The base model on disk: its k most likely tokens at every scored position of the training set.

Computed once, while the model in training still is the base (before the first step, or at the onset
of a floor): afterwards an anchor costs neither a second model nor a second forward pass. What is
kept is exact for the k tokens; the rest is one bucket (`entropyfloor_losses.BaseTopK`), so the KL
is a little low.

    cache/meta.json   k, fingerprint of the base, how many parts; there once the cache is complete
    cache/*-R.*       what process R wrote (`base_cache_files`)

A document is a row of a padded batch, or what `position_ids` mark in a padding-free one. Its next
tokens must not depend on its neighbours in the batch.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropyfloor.io import save_json
from entropyfloor.models.logit_transform import final_logits
from entropyfloor.sft.floor.base_cache_files import CachePart
from entropyfloor_losses import IGNORE_INDEX, BaseTopK

_CHUNK_BYTES = 64 * 2**20  # logits of one chunk
_META = "meta.json"


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
        self._arrays, self._places = [], {}
        for rank in range(meta["parts"]):
            part = CachePart(folder, rank, base=base, k=k)
            self._arrays.append(part.arrays())
            self._places.update({key: (rank, *place) for key, place in part.places.items()})

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
            for array, stored in zip(found, self._arrays[rank], strict=True):
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

    Written as it goes: after an interruption only what is missing is computed. What is there of
    another base, or another k, is replaced.

    Args:
        folder: made if missing; complete once meta.json is there.
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
    part = CachePart(folder, rank, base=base, k=k)
    part.open()
    for batch in batches:
        documents = {d.key: d for d in _documents(batch["labels"][:, 1:], batch)}
        missing = [d for key, d in documents.items() if key not in part.places]
        if missing:
            hidden = hidden_of(batch)[:, :-1]
            part.append(
                {
                    d.key: _most_likely(model, hidden[d.row, d.scored.to(hidden.device)], k)
                    for d in missing
                }
            )
    wait()
    if rank == 0:
        save_json(folder / _META, {"base": base, "k": k, "parts": ranks})
    wait()


def _most_likely(model: Any, states: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    chunk = max(1, _CHUNK_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    parts = [
        final_logits(model, states[start : start + chunk]).log_softmax(-1).topk(k, dim=-1)
        for start in range(0, len(states), chunk)
    ]
    return (
        torch.cat([p.indices for p in parts]).cpu().numpy(),
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
