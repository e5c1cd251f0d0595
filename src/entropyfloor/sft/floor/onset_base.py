"""A model in training as it was at one moment, for a KL that keeps it near what it was then.

What is held is a copy of the trainable parameters alone: of a model with LoRA its adapters. For a
call they change places with those in training; where they are the whole model, the copy is as large
as a frozen base. Or its most likely tokens are written to disk at that moment, and nothing is held.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from entropyfloor.sft.floor.base_cache import CachedBase, fingerprint
from entropyfloor.sft.floor.base_states import LiveBase
from entropyfloor_losses import BaseTopK

FILE_NAME = "floor_base.safetensors"
CACHE_FILE_NAME = "floor_base.json"


class OnsetBase(LiveBase):
    """Nothing until `take`, then the model of that moment.

    Args:
        model: in training, below DDP's wrapper; with or without PEFT's.

    Raises:
        ValueError: a prompt-learning adapter, whose virtual tokens are part of the inputs.

    """

    def __init__(self, model: Any) -> None:
        adapted = isinstance(model, PeftModel)
        if adapted and model.active_peft_config.is_prompt_learning:
            raise ValueError(
                "an anchor to an earlier state of the model needs parameters that can be put back; "
                "this adapter learns virtual tokens, which are part of the inputs. Spend the "
                "entropy elsewhere: floor_place='uniform'"
            )
        super().__init__(model.get_base_model() if adapted else model)
        self._trained_model = model
        self._copies: dict[str, Tensor] = {}

    @property
    def taken(self) -> bool:
        """Whether there is a base."""
        return bool(self._copies)

    def take(self) -> None:
        """The model as it is now becomes the base."""
        self._copies = {name: value.detach().clone() for name, value in self._trained()}

    def save(self, directory: str | Path) -> None:
        """Write `FILE_NAME`, without which a run cannot go on exactly; nothing before `take`."""
        if self.taken:
            copies = {name: value.contiguous().cpu() for name, value in self._copies.items()}
            save_file(copies, Path(directory) / FILE_NAME)

    def load(self, directory: str | Path) -> None:
        """Take what `save` wrote.

        Raises:
            ValueError: there is no file, or it is of a model with other trainable parameters.

        """
        path = Path(directory) / FILE_NAME
        found = load_file(path) if path.is_file() else {}
        trained = dict(self._trained())
        if found.keys() != trained.keys():
            raise _lost(path, "is of another model" if found else "is missing")
        self._copies = {name: value.to(trained[name].device) for name, value in found.items()}

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._trained_model.named_parameters():
            if value.requires_grad:
                yield name, value

    @contextmanager
    def _ready(self) -> Iterator[None]:
        assert self.taken
        trained = dict(self._trained())
        current = {name: value.data for name, value in trained.items()}
        try:
            for name, value in trained.items():
                value.data = self._copies[name]
            torch.clear_autocast_cache()  # it holds casts by parameter, whatever its data
            with super()._ready():
                yield
        finally:
            for name, value in trained.items():
                value.data = current[name]
            torch.clear_autocast_cache()


class CachedOnset(OnsetBase):
    """Nothing until `take`, then a cache of the model of that moment.

    Args:
        model: as for `OnsetBase`.
        folder: of the cache.
        k: tokens kept per position.
        write: given the model as it is and its fingerprint, makes the cache of them in ``folder``.

    Raises:
        ValueError: as for `OnsetBase`.

    """

    def __init__(
        self, model: Any, folder: Path, *, k: int, write: Callable[[LiveBase, str], None]
    ) -> None:
        super().__init__(model)
        self._folder, self._k, self._write = folder, k, write
        self._cached: CachedBase | None = None
        self._base = ""

    @property
    def taken(self) -> bool:
        """Whether there is a base."""
        return self._cached is not None

    def take(self) -> None:
        """The model as it is now becomes the base: a pass over the training set."""
        base = fingerprint(self._trained_model, adapters=True)
        self._write(LiveBase(self.model), base)
        self._open(base)

    def save(self, directory: str | Path) -> None:
        """Write which cache it is; the cache stays where it is."""
        if self.taken:
            record = json.dumps({"base": self._base, "folder": str(self._folder)})
            (Path(directory) / CACHE_FILE_NAME).write_text(record)

    def load(self, directory: str | Path) -> None:
        """Take what `save` wrote.

        Raises:
            ValueError: there is no file, or its cache is not in the folder.

        """
        path = Path(directory) / CACHE_FILE_NAME
        if not path.is_file():
            raise _lost(path, "is missing")
        record = json.loads(path.read_text())
        if not CachedBase.complete(self._folder):
            raise _lost(self._folder, f"has no cache (the run had {record['folder']})")
        self._open(record["base"])

    def _open(self, base: str) -> None:
        self._cached, self._base = CachedBase(self._folder, base=base, k=self._k), base

    def __call__(self, targets: Tensor, *args: Any, **kwargs: Any) -> BaseTopK:  # type: ignore[override]
        """The base at ``targets`` ``[batch, length]``."""
        assert self._cached is not None
        return self._cached(targets, **kwargs)


def _lost(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} {what}: it holds what the entropy floor is anchored to. Start a run from the "
        "checkpoint (model=...) instead of resuming"
    )
