"""Last hidden states and head of the base model, for a KL that keeps a trained model near it.

The base costs one forward pass without gradient. With adapters it is the same model with them
switched off, and no second model is held; without, it is a frozen copy taken before training.
``base_cache.py`` spares both. All are called with a forward's next-token targets and arguments.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from entropyfloor.models.evaluation_mode import evaluating
from entropyfloor_losses import BaseHead


class LiveBase:
    """A model that still is the base, as long as it is not trained: in evaluation mode for a call.

    Args:
        model: without PEFT's wrapper.

    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with evaluating(self.model):
            yield

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> BaseHead:
        """Hidden states ``[batch, length, H]`` and head for a forward's arguments."""
        with self._ready():
            return _base_head(self.model, *args, **kwargs)


class AdapterFreeBase(LiveBase):
    """The model itself with its adapters switched off.

    Raises:
        ValueError: a prompt-learning adapter, whose virtual tokens are part of the inputs.

    """

    def __init__(self, peft_model: PeftModel) -> None:
        if peft_model.active_peft_config.is_prompt_learning:
            raise ValueError(
                "an anchor to the base model needs adapters that can be switched off; this one "
                "learns virtual tokens. Spend the entropy elsewhere: floor_place='uniform'"
            )
        super().__init__(peft_model.get_base_model())
        self._peft_model = peft_model

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with super()._ready(), self._peft_model.disable_adapter():
            yield


class FrozenBase:
    """A frozen copy of a model."""

    def __init__(self, model: Any) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> BaseHead:
        """Hidden states ``[batch, length, H]`` and head for a forward's arguments."""
        self._model.to(next(v.device for v in (*args, *kwargs.values()) if torch.is_tensor(v)))
        return _base_head(self._model, *args, **kwargs)


def _base_head(model: Any, *args: Any, **kwargs: Any) -> BaseHead:
    with torch.no_grad():
        hidden = model.base_model(*args, **kwargs).last_hidden_state
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    if not torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(hidden.dtype)
    return BaseHead(hidden, weight.detach(), None if bias is None else bias.detach())
