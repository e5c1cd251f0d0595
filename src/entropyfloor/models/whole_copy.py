"""A model that processes share, whole and plain for a while: what generation needs.

Its modules are copied before it is sharded, without values; these are gathered when asked for and
let go afterwards. Each process then generates at its own pace, which hooks that gather a layer for
all processes at once would not let it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter

from entropyfloor.models.shards import plain_name, release


class WholeCopy:
    """Modules of a model without its values.

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
