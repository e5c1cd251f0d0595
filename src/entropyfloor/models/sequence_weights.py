"""Weights of whole sequences (DCO, TailSFT) inside a model's forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropyfloor_losses import SequenceWeights


def weights_of_sequences(
    loss: Any, hidden: Tensor, position_ids: Tensor | None, *, training: bool
) -> Tensor | SequenceWeights | None:
    """What the head is given as advantages where the caller gives none.

    Args:
        loss: of the head.
        hidden: ``[batch, length, H]``.
        position_ids: ``[batch, length]``; None: a row is a sequence.
        training: whether the model is; evaluations weigh every token by 1.

    Raises:
        ValueError: a forward cannot form them.

    """
    if not hasattr(loss, "weights_request"):
        return None
    if not training:
        return torch.ones(hidden.shape[:-1], dtype=hidden.dtype, device=hidden.device)
    if getattr(loss, "ranks_the_batch", False):
        raise ValueError(
            f"{type(loss).__name__} ranks the sequences of a whole optimizer step, which a forward "
            "does not see: use SEDTrainer, or pass advantages=sequence_weights(...) of the step"
        )
    return SequenceWeights(loss, position_ids)
