"""The trainer that is calling a callback, and where it goes on from: callbacks are told neither."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import DefaultFlowCallback


def find_trainer(state: TrainerState) -> Trainer | None:
    """Find the trainer that is calling its callbacks: the one on the call stack with this state."""
    for names in _names_of_callers():
        candidate = names.get("self")
        if isinstance(candidate, Trainer) and getattr(candidate, "state", None) is state:
            return candidate
    return None


def resumed_from(trainer: Trainer) -> str | None:
    """Find the checkpoint that ``train(resume_from_checkpoint=...)`` was called with."""
    for names in _names_of_callers():
        checkpoint = names.get("resume_from_checkpoint")
        if names.get("self") is trainer and isinstance(checkpoint, str | os.PathLike):
            return os.fspath(checkpoint)
    return None


def _names_of_callers() -> Iterator[Mapping[str, Any]]:
    """Local variables on the call stack, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals
        frame = frame.f_back


def call_before_reporters(callback: TrainerCallback, trainer: Any) -> None:
    """Move a callback to where reporters (W&B, TensorBoard) see what it adds to the logs.

    Trainer puts them before a user's callbacks. The one that decides about saving stays before all.
    """
    handler = trainer.callback_handler
    first = [c for c in handler.callbacks if isinstance(c, DefaultFlowCallback)]
    others = [c for c in handler.callbacks if c is not callback and c not in first]
    # A new list: the handler may be going through the old one.
    handler.callbacks = [*first, callback, *others]
