"""Reference models: what the entropy floor anchors to, and what losses compare with.

    starting_model   the model that training started from: with adapters the same model with them
                     switched off, otherwise a snapshot of the start
    SnapshotModel    the model in training as it was at one moment: a copy of its trainable
                     parameters, of LoRA the adapters, that change places with those in training
    OnsetModel       a snapshot of the moment when entropy came near the floor
    GivenModel       any other, by its name

A call costs one forward pass without gradient; ``reference_cache.py`` spares it. Every reference
is called with the next-token targets and the arguments of a forward, as `LossHead` does. Of a model
that processes share (FSDP2, ZeRO-3) a snapshot is a copy of each one's shards.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from entropyfloor.models.loss_forward import states_and_head
from entropyfloor.models.loss_head import LossHead, needs_reference
from entropyfloor.models.model_state import evaluating, holding, is_sharded, trainable_values
from entropyfloor.models.patch_model import patch_model
from entropyfloor.models.ranks import rank_and_processes
from entropyfloor.sft.run_record import read_record
from entropyfloor_losses import ReferenceHead

_AGE = "age"


class ReferenceModel:
    """The model as it is when it is called, in evaluation mode for the call.

    Of a model that processes share, parameters change places between its forwards only, so that
    the reference is computed just before the forward that reads it (`begin`).

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
        self._shared = False  # by processes
        self._hook: Any = None
        self._ready: ReferenceHead | None = None

    def begin(self, head: LossHead, checkpoint: Path | None) -> None:
        """Get ready when training begins: the model is on its device, and sharded if it will be.

        Args:
            head: that reads this reference.
            checkpoint: that the run goes on from, and the model is of by now.

        Raises:
            ValueError: the checkpoint lacks the reference.

        """
        self._shared = is_sharded(self.trained)
        if self._hook is not None:
            self._hook.remove()
        if self._shared:
            # Before FSDP2's own, which gather what the root holds.
            self._hook = self.trained.register_forward_pre_hook(
                partial(self._before_forward, head), with_kwargs=True, prepend=True
            )
        if checkpoint is not None:
            self.load(checkpoint)

    def _before_forward(
        self, head: LossHead, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Compute the reference that the forward with these arguments will ask for."""
        asked, read = kwargs.get("entropyfloor_head"), head.reference is self
        if callable(asked) or not read or not head.asked(asked, kwargs):
            return
        if head.wants_loss_alone(asked, kwargs) and needs_reference(head.objective):
            forward = {**kwargs, "entropyfloor_head": self._keep}
            with self._in_place(), evaluating(self.model), torch.no_grad():
                self.trained(*args, **forward)

    def _keep(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        # The head's own memory is let go, or changes places, after the forward.
        if self._shared:
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        if not torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(hidden.dtype)
        self._ready = ReferenceHead(
            hidden, weight.detach(), None if bias is None else bias.detach()
        )

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """While this lasts `model` is the reference."""
        yield

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> ReferenceHead:
        """Hidden states ``[batch, length, H]`` and head for a forward's arguments."""
        if self._ready is None:
            with self._in_place(), evaluating(self.model), torch.no_grad():
                states_and_head(self.model, self._keep, *args, **kwargs)
        return self._taken()

    def _taken(self) -> ReferenceHead:
        ready, self._ready = self._ready, None
        assert ready is not None
        return ready

    def save(self, checkpoint: Path, *, main: bool = True) -> None:
        """Write what `load` reads: nothing, where the model that training starts from is at hand.

        Args:
            checkpoint: its folder.
            main: whether this process writes what all have in common.

        """

    def load(self, checkpoint: Path) -> None:
        """Go on with the reference of a checkpoint."""


class AdapterFreeModel(ReferenceModel):
    """The model in training with its adapters switched off."""

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        trainable = [p for p in self.trained.parameters() if p.requires_grad]
        with self.trained.disable_adapter():
            # PEFT freezes what it switches off, and FSDP2 would remember that of its first forward.
            for parameter in trainable:
                parameter.requires_grad_(True)
            yield


class SnapshotModel(ReferenceModel):
    """No reference until `capture`, then the model of that moment: a copy of its trainable values.

    Of a sharded model each process keeps, saves and loads its own shards.

    Attributes:
        age: steps since then, counted by whoever refreshes it.

    """

    file_name: str

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
        values = trainable_values(self.trained)
        self._snapshot = {name: value.clone() for name, value in values.items()}
        self.age = 0

    def _path(self, checkpoint: Path) -> Path:
        rank, ranks = rank_and_processes()
        stem, _, suffix = self.file_name.rpartition(".")
        name = f"{stem}-{rank}-of-{ranks}.{suffix}" if self._shared else self.file_name
        return checkpoint / name

    def save(self, checkpoint: Path, *, main: bool = True) -> None:
        """Write what `load` reads, without which a run cannot go on exactly."""
        if self.captured and (main or self._shared):
            checkpoint.mkdir(parents=True, exist_ok=True)
            on_cpu = {name: value.contiguous().cpu() for name, value in self._snapshot.items()}
            save_file(on_cpu, self._path(checkpoint), metadata={_AGE: str(self.age)})

    def load(self, checkpoint: Path) -> None:
        """Go on with the reference of a checkpoint.

        Raises:
            ValueError: there is no file, or it is of a model with other trainable parameters.

        """
        path = self._path(checkpoint)
        saved = load_file(path) if path.is_file() else {}
        held = trainable_values(self.trained)
        if saved.keys() != held.keys():
            raise cannot_resume(path, "is of another model" if saved else "is missing")
        self._snapshot = {name: value.to(held[name].device) for name, value in saved.items()}
        with safe_open(path, "pt") as file:
            self.age = int((file.metadata() or {}).get(_AGE, 0))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with holding(self.trained, self._snapshot):
            yield


class StartingModel(SnapshotModel):
    """The model that training starts from, where no adapters can be switched off.

    Args:
        trained: the model in training, before anything was trained.
        late: whether FSDP or DeepSpeed take the model over when training begins: copied then, of
            the shards. A resumed run has the checkpoint's model by then, so that it is saved.

    """

    file_name = "starting_model.safetensors"

    def __init__(self, trained: Any, *, late: bool) -> None:
        super().__init__(trained)
        self._late = late
        if not late:
            self.capture()

    def begin(self, head: LossHead, checkpoint: Path | None) -> None:
        """Copy what this process holds of a model that was taken over."""
        super().begin(head, checkpoint)
        if not self.captured:
            self.capture()

    def save(self, checkpoint: Path, *, main: bool = True) -> None:
        """Write it, where a resumed run could not copy it."""
        if self._late:
            super().save(checkpoint, main=main)

    def load(self, checkpoint: Path) -> None:
        """Read it, where `save` wrote it."""
        if self._late:
            super().load(checkpoint)


class RefreshedModel(StartingModel):
    """A snapshot that is taken anew now and then, and so belongs to every checkpoint."""

    file_name = "loss_reference.safetensors"
    save, load = SnapshotModel.save, SnapshotModel.load


class OnsetModel(SnapshotModel):
    """The snapshot that a floor takes once, when entropy comes near it."""

    file_name = "floor_reference.safetensors"

    def begin(self, head: LossHead, checkpoint: Path | None) -> None:
        """Go on with the onset of a checkpoint, if it had come by then."""
        record = None if checkpoint is None else read_record(checkpoint)
        came = record is not None and record["floor"]["state"]["onset"]
        super().begin(head, checkpoint if came else None)


def starting_model(trained: Any, *, copied: bool, late: bool = False) -> ReferenceModel:
    """The model that training starts from; to be called before anything is trained.

    Args:
        trained: the model in training.
        copied: without adapters, hold a copy; otherwise it is good until the first step.
        late: whether FSDP or DeepSpeed take the model over when training begins.

    """
    if _has_adapters(trained):
        return AdapterFreeModel(trained)
    return StartingModel(trained, late=late) if copied else ReferenceModel(trained)


class GivenModel(ReferenceModel):
    """Another model, frozen, beside the one in training.

    Args:
        name: directory or hub id.
        trained: the model in training, whose dtype and device it gets.
        trainer: that shards both as trl shards a reference model; None: it stays whole.

    Raises:
        ValueError: another vocabulary.

    """

    def __init__(self, name: str, trained: Any, trainer: Any = None) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=trained.dtype, use_safetensors=True
        ).to(trained.device)
        sizes = [m.config.get_text_config().vocab_size for m in (model, trained)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"reference_model {name} has {sizes[0]} tokens and the model in training "
                f"{sizes[1]}; their probabilities of a label can be compared in one vocabulary only"
            )
        patch_model(model, "ce")
        super().__init__(model.requires_grad_(False))
        self._trainer, self._called = trainer, model

    def begin(self, head: LossHead, checkpoint: Path | None) -> None:
        """Shard it, where the model in training is."""
        trainer, self._trainer = self._trainer, None
        if trainer is None or not takes_over(trainer):
            return
        from trl.models import prepare_deepspeed, prepare_fsdp

        if trainer.is_deepspeed_enabled:
            self._called = prepare_deepspeed(self.model, trainer.accelerator)
        else:
            self._called = prepare_fsdp(self.model, trainer.accelerator)
        self._shared = is_sharded(self.model)

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> ReferenceHead:
        """Hidden states ``[batch, length, H]`` and head for a forward's arguments."""
        with evaluating(self.model), torch.no_grad():
            self._called(*args, **kwargs, entropyfloor_head=self._keep)
        return self._taken()


def _has_adapters(model: Any) -> bool:
    """Whether PEFT wraps the model; peft, which may not be installed, is loaded if it does."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def takes_over(trainer: Any) -> bool:
    """Whether DeepSpeed or FSDP take the model over when a trainer begins."""
    return trainer is not None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


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
