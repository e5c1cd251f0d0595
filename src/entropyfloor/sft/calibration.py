"""tau="auto": rows of a trainer's training set, on which the initial model is measured."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from datasets import Dataset

from entropyfloor.models.loss_head import LossHead
from entropyfloor_losses import needs_calibration

logger = logging.getLogger(__name__)


def calibrate(trainer: Any, head: LossHead, *, rows: int, model: Any = None) -> None:
    """Replace tau="auto" by a number: a quantile of the current model's top-k mass.

    Measured on training rows spread evenly over the set (the first ones of a streamed set), scored
    tokens only, dropout off; no random state is consumed, so the run that follows is the run
    without it.

    Args:
        trainer: a ``transformers.Trainer`` with a training set.
        head: of its model; nothing is done where its loss waits for no calibration.
        rows: of the training set.
        model: to call, as the trainer wraps it; default: the patched one.

    """
    waiting: Any = head.loss
    if not needs_calibration(waiting):
        return
    # Not get_eval_dataloader: with persistent workers Trainer keeps that one.
    loader = trainer.get_test_dataloader(calibration_sample(trainer.train_dataset, rows))
    with trainer.compute_loss_context_manager():
        head.calibrate((trainer._prepare_inputs(batch) for batch in loader), model)
    logger.info(
        f"tau calibrated to {head.loss.tau:.4f}: the {waiting.quantile:.0%} quantile of the "  # type: ignore[attr-defined]
        f"top-{waiting.top_k} mass on {rows} training rows"
    )


def spread_evenly(rows: int, count: int) -> list[int]:
    """``count`` places among ``rows``, ascending."""
    return [i * rows // count for i in range(count)]


def calibration_sample(dataset: Any, rows: int) -> Any:
    """At most ``rows`` rows of a training set, spread evenly; the first of a streamed one."""
    if not hasattr(dataset, "__len__"):
        return Dataset.from_list(list(itertools.islice(dataset, rows)))
    chosen = spread_evenly(len(dataset), min(rows, len(dataset)))
    return dataset.select(chosen) if hasattr(dataset, "select") else [dataset[i] for i in chosen]
