"""What a model holds, changed for a while: its mode, its parameters, and all of them in one place.

Parameters that several processes hold together are exchanged where they lie:

    FSDP2            a parameter is a DTensor between forwards; its local tensor is this process's
                     shard
    DeepSpeed ZeRO-3 a parameter is empty between forwards, `ds_tensor` is this process's shard;
                     small ones are kept whole beside it
    DDP, ZeRO-2, one process: a parameter is whole

Generation needs a model that is whole: hooks that gather a layer for all processes at once would
not let each process generate at its own pace.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter

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


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Switch dropout and the like off; modules that were in training mode go back to it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class WholeCopy:
    """Modules of a model, copied before it is sharded; its values are gathered for a while.

    Args:
        model: before it is sharded; with or without PEFT's wrapper.

    Raises:
        ValueError: it is sharded by FSDP already, or quantised.

    """

    def __init__(self, model: Any) -> None:
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        if sharded or getattr(model, "is_quantized", False):
            raise ValueError(
                "rollouts of a sharded model are drawn from a whole copy of it, which cannot be "
                f"made of a model that is {'sharded already' if sharded else 'quantised'}: leave "
                "the probe out (floor_probe_prompts=0, no probe_prompts). The floor then holds for "
                "teacher-forced entropy"
            )
        empty: dict[int, Any] = {}
        for parameter in model.parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            values = torch.empty(shape, dtype=parameter.dtype, device="meta")
            empty[id(parameter)] = Parameter(values, requires_grad=False)
        self._model = copy.deepcopy(model, empty).eval()
        wrapped = hasattr(self._model, "get_base_model")
        base = self._model.get_base_model() if wrapped else self._model
        base.__dict__.pop("forward", None)  # trl's and ours call the model that was copied

    @contextmanager
    def filled(self, model: Any) -> Iterator[Any]:
        """The copy with the values that ``model`` has now; every process must enter.

        Args:
            model: that was copied, between two forwards.

        """
        release(model)
        values = {plain_name(name): _whole(p) for name, p in model.named_parameters()}
        before = _replace(self._model, values)
        buffers = {plain_name(name): value for name, value in model.named_buffers()}
        for name, _ in list(self._model.named_buffers()):
            owner, _, own_name = name.rpartition(".")
            setattr(self._model.get_submodule(owner), own_name, buffers[name])
        try:
            yield self._model
        finally:
            _replace(self._model, before)


@torch.no_grad()
def _whole(parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def _replace(model: Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give parameters other values, of another device too; returns those they had."""
    before = dict(model.named_parameters())
    new = {
        id(parameter): Parameter(values[name], requires_grad=False)
        for name, parameter in before.items()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, new[id(parameter)])  # tied ones alike
    return {name: parameter.detach() for name, parameter in before.items()}
