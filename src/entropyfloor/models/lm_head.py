"""The head of a Hugging Face causal language model: its weight, and how its products become logits.

The weight matrix is whole inside the model's forward, wherever its shards lie:

    DeepSpeed ZeRO-3   parameters are empty outside their module's forward, and the head's is never
                       called: gathered for the block
    FSDP2              parameters are DTensors: made whole, differentiably
    FSDP1, DDP, none   whole already

    logits = softcap * tanh(logit_scale * (h W^T + bias) / softcap)     (no cap: scaled products)

There is no common attribute: Gemma 2 has ``final_logit_softcapping``, Cohere ``logit_scale``,
Falcon-H1 ``lm_head_multiplier``, Muse Glimmer ``output_multiplier``; Granite and MiniCPM3
*divide* by ``logits_scaling``, HyperCLOVA X multiplies by it. The tests compare with each
family's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


@contextmanager
def whole_head(lm_head: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight ``[V, H]`` and bias ``[V]`` (or None) of a head while the block lasts.

    To be used inside the forward of the model that holds the head: that is where ZeRO-3 reduces the
    gradients of what was gathered, and where FSDP1 has the parameters whole.
    """
    refuse_adapter(lm_head)
    # Read once: with PEFT's trainable tokens each reading merges the matrix anew.
    weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
    with _gathered([parameter for parameter in (weight, bias) if parameter is not None]):
        yield _full(weight), None if bias is None else _full(bias)


def refuse_adapter(lm_head: Any) -> None:
    """Raise ValueError for a head whose weight is not all that it multiplies with."""
    if "base_layer" in getattr(lm_head, "_modules", ()):  # a layer of PEFT's: LoRA and its kin
        raise ValueError(
            f"the output embedding has an adapter ({type(lm_head).__name__}), which the loss would "
            "leave out: it reads the head's weight. Train the head itself with "
            "modules_to_save=['lm_head'], or take it out of target_modules"
        )


def _gathered(parameters: list[Any]) -> AbstractContextManager[Any]:
    """Gather what ZeRO-3 holds no values of; a tied head, gathered as embedding, it has already."""
    absent = [p for p in parameters if hasattr(p, "ds_id") and p.numel() == 0]
    if not absent:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(absent)
    return context


def _full(parameter: Tensor) -> Tensor:
    """Gather a parameter that FSDP2 shards as a DTensor: hidden states are plain tensors.

    Each process has the gradient of its own tokens, and FSDP averages gradients over processes.
    Without `grad_placements` each would keep, of its own shard, the gradient of its own tokens.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


class HeadOptions(TypedDict):
    """Keyword arguments of `entropyfloor_losses.linear_loss`."""

    softcap: float | None
    logit_scale: float


_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


def head_options(config: Any) -> HeadOptions:
    """Soft cap and logit scale of a model's head.

    Args:
        config: a transformers config; for multimodal models its text part is used.

    """
    text = config.get_text_config()
    scale = next((s for name in _FACTORS if (s := getattr(text, name, None)) is not None), None)
    if scale is None and (divisor := getattr(text, "logits_scaling", None)) is not None:
        scale = divisor if text.model_type == "hyperclovax" else 1.0 / divisor
    cap = getattr(text, "final_logit_softcapping", None)
    return HeadOptions(
        softcap=None if cap is None else float(cap),
        logit_scale=1.0 if scale is None else float(scale),
    )


def final_logits(model: Any, hidden: Tensor) -> Tensor:
    """``[n, H]`` -> ``[n, V]`` logits in fp32 (fp64 for an fp64 model), scaled and capped.

    Args:
        model: a causal language model; its head module is called, so that adapters on it count.
        hidden: last hidden states.

    """
    logits = model.get_output_embeddings()(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    options = head_options(model.config)
    logits = logits * options["logit_scale"]
    cap = options["softcap"]
    return logits if cap is None else cap * torch.tanh(logits / cap)
