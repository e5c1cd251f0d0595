"""Versions of trl that were not tested: cross-entropy has to be what SFTTrainer computes.

At the first step, when the model is wrapped, both compute it on a few fixed tokens, with and
without a token count. What differs by more than rounding ends the run before it has cost anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from trl import SFTTrainer
from trl import __version__ as trl_version

from entropyfloor.models.model_state import evaluating
from entropyfloor.sft.floor.floor import warn
from entropyfloor.sft.tested_versions import tested, untested
from entropyfloor_losses import IGNORE_INDEX, CrossEntropyLoss

# From here on trl divides the balancing loss by accumulation steps, and its head scales logits by
# `logits_scaling` (Granite, MiniCPM3), as the models' own forwards do.
_MENDED = Version("1.15")


class _TrlsForward:
    """A model as trl sees it: without our head."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs, entropyfloor_head=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def refuse_what_trl_cannot(trainer: Any) -> None:
    """Raise ValueError where this trl, or what patches it, trains something else than we would."""
    for parent in type(trainer).__mro__:
        if "unsloth" in f"{parent.__module__}.{parent.__qualname__}".lower():
            raise ValueError(
                f"Unsloth has replaced trl's SFTTrainer by {parent.__qualname__}, whose loss is "
                "not ours. Import entropyfloor and load the model without Unsloth, or train with "
                "entropyfloor.patch_model in a loop of your own"
            )
    if trainer.aux_loss_enabled and Version(trl_version) < _MENDED:
        raise ValueError(
            f"trl {trl_version} adds the balancing loss of a mixture of experts once per "
            "micro-batch, so that it grows with accumulation. Use trl >= 1.15, or "
            "router_aux_loss_coef=0.0"
        )


def check_agreement(trainer: Any, model: Any) -> None:
    """Compare cross-entropy with SFTTrainer's, if the installed versions were not tested.

    Args:
        trainer: a SEDTrainer before its first step.
        model: as it is wrapped for training.

    Raises:
        ValueError: they differ; with both numbers.

    """
    versions = untested()
    if versions is None:
        return
    text_config = trainer.model.config.get_text_config()
    if Version(trl_version) < _MENDED and getattr(text_config, "logits_scaling", None) is not None:
        warn(f"{versions}: its cross-entropy leaves out logits_scaling, so ours is not compared")
        return
    inputs, tokens = _fixed_tokens(trainer)
    pairs = []
    with _as_cross_entropy(trainer), evaluating(model), torch.no_grad():
        for count in (None, torch.tensor(3 * tokens + 1, device=inputs["labels"].device)):
            with trainer.compute_loss_context_manager():
                ours = trainer.compute_loss(model, dict(inputs), num_items_in_batch=count)
                try:
                    theirs = SFTTrainer.compute_loss(
                        trainer, _TrlsForward(model), dict(inputs), num_items_in_batch=count
                    )
                except Exception as error:
                    warn(
                        f"{versions} was not tested with this release of entropyfloor, and its "
                        f"cross-entropy cannot be compared with ours: {type(error).__name__}: "
                        f"{error}. Tested: {tested()}"
                    )
                    return
            pairs.append((count, float(ours), float(theirs)))
    exact = inputs["labels"].device.type == "cpu" and next(model.parameters()).dtype.itemsize >= 4
    tolerance = 1e-4 if exact and not (trainer.args.bf16 or trainer.args.fp16) else 2e-2
    for count, ours, theirs in pairs:
        if not abs(ours - theirs) <= tolerance * abs(theirs):
            counted = "without a token count" if count is None else f"with a count of {int(count)}"
            raise ValueError(
                f"{versions} was not tested with this release of entropyfloor, and they disagree: "
                f"cross-entropy of {tokens} fixed tokens, {counted}, is {theirs:.6g} by SFTTrainer "
                f"and {ours:.6g} by SEDTrainer. Install a tested version ({tested()}), or train "
                "with entropyfloor.patch_model in transformers.Trainer"
            )
    warn(
        f"{versions} was not tested with this release of entropyfloor; cross-entropy of "
        f"{tokens} fixed tokens agrees with SFTTrainer's ({pairs[0][1]:.6g} nats)"
    )


def _fixed_tokens(trainer: Any) -> tuple[dict[str, Tensor], int]:
    """Two rows with some ignored labels, and how many next tokens are scored."""
    vocabulary = trainer.model.config.get_text_config().vocab_size
    ids = (torch.arange(24, device=trainer.args.device).reshape(2, 12) * 7919 + 11) % vocabulary
    labels = ids.clone()
    labels[0, :5] = IGNORE_INDEX
    tokens = int((labels[:, 1:] != IGNORE_INDEX).sum())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, tokens


@contextmanager
def _as_cross_entropy(trainer: Any) -> Iterator[None]:
    """The plain loss, and no trace in metrics."""
    head = trainer._head
    loss, metrics, sums = head.loss, trainer._metrics, dict(head._sums)
    trainer._metrics, head.loss = copy.deepcopy(metrics), CrossEntropyLoss()
    try:
        yield
    finally:
        head.loss, trainer._metrics, head._sums = loss, metrics, sums
