"""Weights on the straight line between a checkpoint and the base it was trained from.

    theta(share) = (1 - share) * checkpoint + share * base

Of a LoRA adapter the change is B A: scaling B by 1 - share is the same line, and what comes out is
an adapter again. Modules that were trained whole beside it (``modules_to_save``) are interpolated
with the base's own.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from entropyfloor.io import whole_folder
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import load_checkpoint, vocabulary_size

_SCALED = (".lora_B.", ".lora_embedding_B")
# Beside a changed module peft stores the base's own, also where only its size was changed.
_UNCHANGED = (".lora_A.", ".lora_embedding_A", ".base_layer.weight", ".original_module.")
_OTHER = (".lora_magnitude_vector", ".token_adapter.")  # DoRA, trainable tokens
_ADAPTER_FILE = "adapter_model.safetensors"


def check_same_shapes(checkpoint: CheckpointSource, base: CheckpointSource) -> None:
    """Refuse an adapter on another base, an adapter as a base, and kinds that are not on a line.

    Raises:
        ValueError: the line between the two is not defined or not implemented.

    """
    if base.base is not None:
        raise ValueError(f"{base.path} is an adapter; give the full model that training began with")
    rows, base_rows = vocabulary_size(checkpoint), vocabulary_size(base)
    if rows != base_rows:
        raise ValueError(
            f"{checkpoint.path} has embeddings for {rows} tokens and {base.path} for "
            f"{base_rows}: training resized them, and no line joins the two. Save a base of {rows} "
            "(resize_token_embeddings) and give it with the whole model; of an adapter that is the "
            "merged one (peft: merge_and_unload, then save_pretrained)"
        )
    if checkpoint.base is None:
        return
    if checkpoint.virtual_tokens:
        raise ValueError(
            f"{checkpoint.path} is a prompt-learning adapter, which has no weights on a line to "
            "its base; train with LoRA or whole, or screen a shallower checkpoint"
        )
    if checkpoint.base.directory.resolve() != base.directory.resolve():
        raise ValueError(
            f"{checkpoint.path} is an adapter on {checkpoint.base.path}, not on {base.path}; "
            f"give --base {checkpoint.base.path}"
        )
    with safe_open(checkpoint.directory / _ADAPTER_FILE, "pt") as weights:
        others = [name for name in weights.keys() if _is(name, *_OTHER)]  # noqa: SIM118
    if others:
        raise ValueError(
            f"{checkpoint.path} is no plain LoRA adapter ({others[0]}), and its change is not "
            "scaled by one factor; merge it into its base (peft: merge_and_unload, then "
            "save_pretrained) and rescue the merged model"
        )


def write_interpolated(
    checkpoint: CheckpointSource, base: CheckpointSource, share: float, target: Path
) -> None:
    """Write ``theta(share)`` as a checkpoint of the same kind, with tokenizer and other files.

    Args:
        checkpoint: a full model or a LoRA adapter.
        base: the model that it was trained from.
        share: of the base, in [0, 1].
        target: directory; appears complete or not at all.

    Raises:
        ValueError: a share outside [0, 1], or as :func:`check_same_shapes`.

    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share!r}; it must be in [0, 1]")
    check_same_shapes(checkpoint, base)
    write = _write_model if checkpoint.base is None else _write_adapter
    with whole_folder(target) as unfinished:
        write(checkpoint, base, share, unfinished)


def _write_adapter(
    checkpoint: CheckpointSource, base: CheckpointSource, share: float, target: Path
) -> None:
    for file in checkpoint.directory.iterdir():
        if file.is_file() and file.suffix in {".json", ".jinja", ".txt", ".model"}:
            shutil.copy2(file, target)
    weights = load_file(checkpoint.directory / _ADAPTER_FILE)
    whole = {n: v for n, v in weights.items() if not _is(n, *_SCALED, *_UNCHANGED)}
    of_base = _base_weights(base, whole) if whole else {}
    for name, value in weights.items():
        if name in of_base:
            weights[name] = _mix(value, of_base[name], share, name)
        elif _is(name, *_SCALED):
            weights[name] = (value.float() * (1 - share)).to(value.dtype)
    save_file(weights, target / _ADAPTER_FILE, metadata={"format": "pt"})


def _base_weights(base: CheckpointSource, names: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The base's weights under the adapter's names for modules that were trained whole."""
    state = load_checkpoint(base, device="cpu").model.state_dict()
    weights = {}
    for name in names:
        plain = name.removeprefix("base_model.model.")
        for wrapper in (".modules_to_save.", ".base_layer."):  # of the latter biases alone
            plain = plain.replace(wrapper, ".")
        if plain not in state:
            raise ValueError(
                f"{name} of the adapter is neither a LoRA factor nor a weight of {base.path}; "
                "rescue handles LoRA and modules_to_save"
            )
        weights[name] = state[plain]
    return weights


def _write_model(
    checkpoint: CheckpointSource, base: CheckpointSource, share: float, target: Path
) -> None:
    loaded, origin = (load_checkpoint(source, device="cpu") for source in (checkpoint, base))
    state, other = loaded.model.state_dict(), origin.model.state_dict()
    if state.keys() != other.keys():
        differing = sorted(state.keys() ^ other.keys())
        raise ValueError(
            f"{checkpoint.path} and {base.path} have different weights ({differing[0]}, ...): "
            "they are not the same architecture"
        )
    mixed = set()  # a tied head stands under two names
    with torch.no_grad():
        for name, value in state.items():
            if value.is_floating_point() and value.data_ptr() not in mixed:
                value.copy_(_mix(value, other[name], share, name))
                mixed.add(value.data_ptr())
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)


def _mix(value: torch.Tensor, base: torch.Tensor, share: float, name: str) -> torch.Tensor:
    if value.shape != base.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} in the checkpoint and {tuple(base.shape)} in "
            "the base; was the vocabulary resized? Resize the base's in the same way first"
        )
    return torch.lerp(value.float(), base.float(), share).to(value.dtype)


def _is(name: str, *parts: str) -> bool:
    return any(part in name for part in parts)
