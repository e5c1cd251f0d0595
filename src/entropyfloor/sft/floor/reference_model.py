"""Reference models: what the entropy floor anchors to, and what losses compare with.

    starting_model   the model that training started from: with adapters the same model with them
                     switched off, otherwise a frozen copy
    SnapshotModel    the model in training as it was at one moment: a copy of its trainable
                     parameters, of LoRA the adapters, that change places with those in training
    OnsetModel       a snapshot of the moment when entropy came near the floor
    given_model      any other, by its name

A call costs one forward pass without gradient; ``reference_cache.py`` spares it. Every reference
is called with the next-token targets and the arguments of a forward, as `LossHead` does.
"""

import copy
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from entropyfloor.models.evaluation_mode import evaluating
from entropyfloor_losses import ReferenceHead

_AGE = "age"


class ReferenceModel:
    """The model as it is when it is called, in evaluation mode for the call.

    Args:
        trained: the model in training, below DDP's wrapper; with or without PEFT's.

    Raises:
        ValueError: a prompt-learning adapter, whose virtual tokens are part of the inputs.

    """

    def __init__(self, trained: Any) -> None:
        adapted = _has_adapters(trained)
        if adapted and trained.active_peft_config.is_prompt_learning:
            raise ValueError(
                "a reference model needs adapters that can be switched off or put back; this one "
                "learns virtual tokens, which are part of the inputs. Choose a loss without a "
                "reference, and for an entropy floor floor_place='uniform'"
            )
        self.trained = trained
        self.model = trained.get_base_model() if adapted else trained

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """While this lasts `model` is the reference."""
        yield

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> ReferenceHead:
        """Hidden states ``[batch, length, H]`` and head for a forward's arguments."""
        with self._in_place(), evaluating(self.model):
            with torch.no_grad():
                hidden = self.model.base_model(*args, **kwargs).last_hidden_state
            head = self.model.get_output_embeddings()
            weight, bias = head.weight.detach(), getattr(head, "bias", None)
        if not torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(hidden.dtype)
        return ReferenceHead(hidden, weight, None if bias is None else bias.detach())


def starting_model(trained: Any, *, copied: bool) -> ReferenceModel:
    """The model that training starts from; to be called before anything is trained.

    Args:
        trained: the model in training.
        copied: without adapters, hold a frozen copy; otherwise it is good until the first step.

    """
    if _has_adapters(trained):
        return AdapterFreeModel(trained)
    return ReferenceModel(copy.deepcopy(trained).requires_grad_(False) if copied else trained)


class AdapterFreeModel(ReferenceModel):
    """The model in training with its adapters switched off."""

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with self.trained.disable_adapter():
            yield


def given_model(name: str, trained: Any) -> ReferenceModel:
    """Another model, frozen, beside the one in training.

    Args:
        name: directory or hub id.
        trained: the model in training, whose dtype and device it gets.

    Raises:
        ValueError: another vocabulary.

    """
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=trained.dtype, use_safetensors=True
    ).to(trained.device)
    sizes = [m.config.get_text_config().vocab_size for m in (model, trained)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"reference_model {name} has {sizes[0]} tokens and the model in training {sizes[1]}; "
            "their probabilities of a label can be compared in one vocabulary only"
        )
    return ReferenceModel(model.requires_grad_(False))


class SnapshotModel(ReferenceModel):
    """No reference until `capture`, then the model of that moment.

    Attributes:
        age: steps since then, counted by whoever refreshes it.

    """

    file_name = "loss_reference.safetensors"

    def __init__(self, trained: Any) -> None:
        super().__init__(trained)
        self._snapshot: dict[str, Tensor] = {}
        self.age = 0

    @property
    def captured(self) -> bool:
        """Whether there is a reference."""
        return bool(self._snapshot)

    def capture(self) -> None:
        """Make the model as it is now the reference."""
        self._snapshot = {n: value.detach().clone() for n, value in self._trainable().items()}
        self.age = 0

    def save(self, checkpoint: Path) -> None:
        """Write what `load` reads, without which a run cannot go on exactly."""
        if self.captured:
            on_cpu = {name: value.contiguous().cpu() for name, value in self._snapshot.items()}
            save_file(on_cpu, checkpoint / self.file_name, metadata={_AGE: str(self.age)})

    def load(self, checkpoint: Path) -> None:
        """Go on with the reference of a checkpoint.

        Raises:
            ValueError: there is no file, or it is of a model with other trainable parameters.

        """
        path = checkpoint / self.file_name
        saved = load_file(path) if path.is_file() else {}
        trainable = self._trainable()
        if saved.keys() != trainable.keys():
            raise cannot_resume(path, "is of another model" if saved else "is missing")
        self._snapshot = {name: value.to(trainable[name].device) for name, value in saved.items()}
        with safe_open(path, "pt") as file:
            self.age = int((file.metadata() or {}).get(_AGE, 0))

    def _trainable(self) -> dict[str, Tensor]:
        return {n: value for n, value in self.trained.named_parameters() if value.requires_grad}

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        assert self.captured
        trainable = self._trainable()
        current = {name: value.data for name, value in trainable.items()}
        try:
            for name, value in trainable.items():
                value.data = self._snapshot[name]
            torch.clear_autocast_cache()  # it holds casts by parameter, whatever its data
            yield
        finally:
            for name, value in trainable.items():
                value.data = current[name]
            torch.clear_autocast_cache()


class OnsetModel(SnapshotModel):
    """The snapshot that a floor takes once, when entropy comes near it."""

    file_name = "floor_reference.safetensors"


def _has_adapters(model: Any) -> bool:
    """Whether PEFT wraps the model; peft, which may not be installed, is loaded if it does."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def fingerprint(model: Any, *, adapters: bool = False) -> str:
    """16 hex digits that differ between models whose parameters differ.

    Args:
        model: with or without adapters.
        adapters: whether they count.

    """
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if not adapters and (".lora_" in name or ".modules_to_save." in name):
            continue
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        flat = value.detach().double()
        digest.update(f"{plain} {tuple(value.shape)} {float(flat.sum())}".encode())
        digest.update(f"{float(flat.abs().sum())}".encode())
    return digest.hexdigest()[:16]


def cannot_resume(path: Path, reason: str) -> ValueError:
    """The error for a checkpoint whose reference is gone."""
    return ValueError(
        f"{path} {reason}: it holds what the entropy floor is anchored to, or what the loss "
        "compares with. Start a run from the checkpoint (model=...) instead of resuming"
    )
