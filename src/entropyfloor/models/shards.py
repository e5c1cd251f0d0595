"""Parameters that several processes hold together: what lies here, exchanged for other values.

FSDP2            a parameter is a DTensor between forwards; its local tensor is this process's shard
DeepSpeed ZeRO-3 a parameter is empty between forwards, `ds_tensor` is this process's shard; small
                 ones are kept whole beside it
DDP, ZeRO-2, one process: a parameter is whole
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# What activation checkpointing and torch.compile put into names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def plain_name(name: str) -> str:
    """Name of a parameter without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def is_sharded(model: Any) -> bool:
    """Whether the parameters are whole in the model's forward only (FSDP2, ZeRO-3)."""
    if any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        return True
    return bool(_fsdp_modules(model))


def local_values(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter between forwards: its shard, or all of it."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    shard: Tensor | None = getattr(parameter, "ds_tensor", None)
    return parameter.detach() if shard is None else shard.detach()


def trainable_values(model: Any) -> dict[str, Tensor]:
    """Plain name -> what this process holds of each trainable parameter; views, not copies."""
    release(model)
    named = model.named_parameters()
    return {plain_name(name): local_values(p) for name, p in named if p.requires_grad}


@contextmanager
def holding(model: Any, values: dict[str, Tensor]) -> Iterator[None]:
    """While this lasts parameters hold ``values``, and these what the parameters held.

    Not inside the forward of a sharded model, where parameters are whole for a while.

    Args:
        model: sharded or not.
        values: plain name -> what `local_values` gave of that parameter at another time.

    Raises:
        ValueError: values of another shape than the shards have now.

    """
    _exchange(model, values)
    try:
        yield
    finally:
        _exchange(model, values)


@torch.no_grad()
def _exchange(model: Any, values: dict[str, Tensor]) -> None:
    release(model)
    kept_whole = []
    for full_name, parameter in model.named_parameters():
        name = plain_name(full_name)
        if name not in values:
            continue
        here, other = local_values(parameter), values[name]
        if here.shape != other.shape:
            raise ValueError(
                f"{name} is held in shape {tuple(here.shape)} and was in {tuple(other.shape)}: the "
                "model was sharded after its values were taken, or among other processes. Prepare "
                "the callback when the model is sharded, and resume with as many processes"
            )
        if not isinstance(parameter, DTensor) and not hasattr(parameter, "ds_tensor"):
            values[name], parameter.data = parameter.data, other.to(here.device)
            continue
        # In place: FSDP2 and DeepSpeed gather from buffers that these are views of.
        current = here.clone()
        here.copy_(other)
        values[name] = current
        if parameter.numel() and hasattr(parameter, "ds_tensor"):
            kept_whole.append(parameter)
    if kept_whole:  # what DeepSpeed does after an optimiser step
        kept_whole[0].partition(kept_whole)
        kept_whole[0].all_gather(kept_whole)
    torch.clear_autocast_cache()  # it holds casts by parameter, whatever its data


def release(model: Any) -> None:
    """Let go of parameters that FSDP2 kept whole after a forward without backward; between two."""
    for module in _fsdp_modules(model):
        module.reshard()


def _fsdp_modules(model: Any) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to load, and loaded where it is used
    kind = getattr(fsdp, "FSDPModule", None)  # since torch 2.6
    return [] if kind is None else [m for m in model.modules() if isinstance(m, kind)]
