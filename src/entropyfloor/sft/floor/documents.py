"""Documents of a batch, by which a cached reference is looked up: read while they are on the host.

A document is a row of a padded batch, or what `position_ids` mark in a padding-free one. Its key is
a digest of its tokens and targets, so that it is found in any batch, order and epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropyfloor_losses import IGNORE_INDEX

DOCUMENTS = "documents"  # of a batch, beside its tensors


@dataclass(frozen=True)
class Document:
    """A document of a batch: its digest, its row, the columns of its scored targets, and these."""

    key: str
    row: int
    scored: np.ndarray
    labels: Tensor


class DocumentCollator:
    """A collator whose batches carry their documents: once they are on a GPU, looking waits for it.

    Args:
        collate: rows -> a batch with ``labels``.

    """

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate

    def __call__(self, rows: Any) -> Any:
        """The batch, and its documents under `DOCUMENTS`."""
        batch = self._collate(rows)
        batch[DOCUMENTS] = tuple(documents_of(batch["labels"][:, 1:], batch))
        return batch


def documents_of(targets: Tensor, inputs: dict[str, Any]) -> Iterator[Document]:
    """Documents with a scored target; tokens and targets are looked at on the CPU."""
    tokens, labels = inputs["input_ids"].cpu(), targets.cpu()
    positions = inputs.get("position_ids")
    for row in range(len(tokens)):
        begins = torch.zeros(tokens.shape[1], dtype=torch.bool)
        if positions is not None:
            begins = positions[row].cpu() == 0
        begins[0] = True  # a row begins a document, wherever its positions do
        starts = begins.nonzero().squeeze(1).tolist()
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
            columns = scored.numpy() + start
            yield Document(digest.hexdigest(), row, columns, of_document[scored])
