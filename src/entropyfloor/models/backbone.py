"""A model's last hidden states and its whole head, read inside its forward; no loss, no logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from entropyfloor.models.head_weight import whole_head


def states_and_head(model: Any, read: Callable[..., None], *args: Any, **kwargs: Any) -> Tensor:
    """Hand ``read`` the last hidden states, and weight and bias of the whole head; no loss.

    Returns:
        The hidden states ``[batch, length, H]``.

    """
    for of_loss in ("labels", "shift_labels", "advantages", "num_items_in_batch"):
        kwargs.pop(of_loss, None)
    hidden: Tensor = model.base_model(*args, **of_backbone(kwargs)).last_hidden_state
    with whole_head(model.get_output_embeddings()) as (weight, bias):
        read(hidden, weight, bias)
    return hidden


def of_backbone(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The backbone's share of a forward's arguments; nothing is cached."""
    of_logits = ("return_dict", "logits_to_keep", "skip_logits")
    return {n: value for n, value in kwargs.items() if n not in of_logits} | {"use_cache": False}
