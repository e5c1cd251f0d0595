"""How a Hugging Face causal language model turns head products into logits, read off its config.

    logits = softcap * tanh(logit_scale * (h W^T + bias) / softcap)     (no cap: scaled products)

There is no common attribute: Gemma 2 has ``final_logit_softcapping``, Cohere ``logit_scale``,
Falcon-H1 ``lm_head_multiplier``, Muse Glimmer ``output_multiplier``; Granite and MiniCPM3
*divide* by ``logits_scaling``, HyperCLOVA X multiplies by it. The tests compare with each
family's own forward.
"""

from typing import Any, TypedDict

import torch
from torch import Tensor


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
