"""Weights of whole sequences (DCO, TailSFT) inside a model's forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from entropyfloor.models.logit_transform import head_options
from entropyfloor_losses import ReferenceTopK, linear_token_statistics, sequence_weights


def weights_of_sequences(
    loss: Any,
    model: PreTrainedModel,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    position_ids: Tensor | None,
    reference: ReferenceTopK | None,
) -> Tensor:
    """Form the weights from one more product of the head; 1 in evaluations.

    Args:
        loss: has ``weights_request``.
        model: whose forward calls.
        inputs: hidden states, head weight, targets and bias, without gradient.
        position_ids: as the targets; None: a row is a sequence.
        reference: the labels' log-probabilities, for losses that need them.

    Raises:
        ValueError: a forward cannot form them.

    """
    hidden, weight, targets, bias = inputs
    if not model.training:
        return torch.ones_like(targets, dtype=hidden.dtype)
    if getattr(loss, "ranks_the_batch", False):
        raise ValueError(
            f"{type(loss).__name__} ranks the sequences of a whole optimizer step, which a forward "
            "does not see: use SEDTrainer, or pass advantages=sequence_weights(...) of the step"
        )
    if loss.weights_request.needs_reference and reference is None:
        raise ValueError(
            f"{type(loss).__name__} weighs sequences by a reference model: use SEDTrainer, or set "
            "head.weights_reference"
        )
    with torch.no_grad():
        statistics = linear_token_statistics(
            hidden,
            weight,
            targets,
            bias=bias,
            request=loss.weights_request,
            reference=reference,
            **head_options(model.config),
        )
    return sequence_weights(loss, statistics, position_ids)
