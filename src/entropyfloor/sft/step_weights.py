"""Weights that rank the sequences of a whole optimizer step: over micro-batches and processes.

The micro-batches of a step are evaluated first, without gradient and dropout: one more forward pass
a step. Then each gets its tokens' weights as ``advantages``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.ranks import gathered
from entropyfloor_losses import CrossEntropyLoss, TokenStatistics, sequence_weights


def with_step_weights(
    trainer: Any, head: LossHead, batches: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The micro-batches of a step with ``advantages``, where the loss ranks sequences.

    Args:
        trainer: whose model is evaluated; every process must call.
        head: of its model, with ``weights_reference``.
        batches: collated, with ``labels``; a collator that shifts them is refused.

    """
    loss: Any = head.loss
    if not getattr(loss, "ranks_the_batch", False):
        return batches
    parts = [_evaluate(trainer, head, batch) for batch in batches]
    names = ("scored", "log_prob", "reference_log_prob")
    flat = {n: torch.cat([part[n].flatten() for part in parts]) for n in names}
    positions = torch.cat([part["positions"].flatten() for part in parts])

    def gather(per_sequence: Tensor) -> Tensor:
        values = gathered(per_sequence.tolist())
        return torch.tensor(values, dtype=per_sequence.dtype, device=per_sequence.device)

    weights = sequence_weights(loss, TokenStatistics(**flat), positions, gather=gather)
    pieces = weights.split([part["scored"].numel() for part in parts])
    for batch, part, piece in zip(batches, parts, pieces, strict=True):
        # The forward leaves the first out, as it does with the labels.
        batch["advantages"] = torch.nn.functional.pad(piece.view(part["scored"].shape), (1, 0))
    return batches


def _evaluate(trainer: Any, head: LossHead, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Log-probabilities of a micro-batch's labels, its scored tokens and positions."""
    if batch.get("shift_labels") is not None:
        raise ValueError(
            f"loss {head.loss.name!r} ranks whole sequences, which context parallelism cuts; "  # type: ignore[attr-defined]
            "choose another loss"
        )
    inputs = trainer._prepare_inputs(batch)
    with trainer.compute_loss_context_manager():
        (output,) = head.evaluated(CrossEntropyLoss(), [inputs], trainer.model_wrapped)
    scored = output.scored
    assert head.weights_reference is not None
    targets = inputs["labels"][:, 1:]
    of_labels = head.weights_reference(targets, **inputs).label_log_probs
    assert of_labels is not None
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(scored.shape[1], device=scored.device).expand(scored.shape)
    else:
        positions = positions[:, :-1].clone()
        positions[:, 0] = 0  # a row begins a sequence, wherever its positions do
    return {
        "scored": scored,
        "log_prob": output.log_prob,
        "reference_log_prob": of_labels.to(output.log_prob.dtype),
        "positions": positions,
    }
