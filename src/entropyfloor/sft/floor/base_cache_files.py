"""One process's part of a base cache on disk: appended to batch by batch, read in place.

    documents-R.jsonl   what the part is of; then a document a line: [digest, first row, rows]
    indices-R.bin       int32   [rows, k]      one row per scored token, most likely first
    log_probs-R.bin     float32 [rows, k]

A batch's rows are on disk before its documents are named: what `documents-R.jsonl` names is whole,
whenever the process was killed.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from entropyfloor.io import write_atomic

_ARRAYS = (("indices", np.dtype("<i4")), ("log_probs", np.dtype("<f4")))


class CachePart:
    """The part of process ``rank`` in ``folder``, with what is there already.

    Args:
        folder: of the cache.
        rank: of the process that wrote it, or is about to.
        base: fingerprint of the base; what is there of another one counts for nothing.
        k: tokens per row; likewise.

    """

    def __init__(self, folder: Path, rank: int, *, base: str, k: int) -> None:
        self._k = k
        self._header = json.dumps({"base": base, "k": k})
        self._index = folder / f"documents-{rank}.jsonl"
        self._files = [(folder / f"{name}-{rank}.bin", dtype) for name, dtype in _ARRAYS]
        self.places: dict[str, tuple[int, int]] = {}
        self._rows = 0
        whole_lines = self._index.read_text().split("\n")[:-1] if self._index.is_file() else []
        if whole_lines[:1] == [self._header]:
            for key, first, count in map(json.loads, whole_lines[1:]):
                self.places[key] = (first, count)
                self._rows = first + count

    def arrays(self) -> list[np.ndarray]:
        """Token indices and log-probabilities ``[rows, k]``, mapped from disk."""
        shape = (self._rows, self._k)
        return [
            np.memmap(path, dtype, "r", shape=shape) if self._rows else np.zeros(shape, dtype)
            for path, dtype in self._files
        ]

    def open(self) -> None:
        """Make the files, or drop what a killed process left of a batch in them."""
        # First the index: it never names what is not there, also if this is where the kill comes.
        write_atomic(self._index, f"{self._header}\n{_lines(self.places)}")
        for path, dtype in self._files:
            with path.open("ab") as file:
                file.truncate(self._rows * self._k * dtype.itemsize)

    def append(self, documents: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Add a batch: a document's digest -> its indices and log-probabilities ``[rows, k]``."""
        places = {}
        for key, (indices, _) in documents.items():
            places[key] = (self._rows, len(indices))
            self._rows += len(indices)
        columns = zip(*documents.values(), strict=True)
        for (path, dtype), values in zip(self._files, columns, strict=True):
            _append(path, np.concatenate(values).astype(dtype).tobytes())
        _append(self._index, _lines(places).encode())
        self.places.update(places)


def _lines(places: Mapping[str, tuple[int, int]]) -> str:
    return "".join(f"{json.dumps([key, *place])}\n" for key, place in places.items())


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
