"""The cache of a trainer's base: a pass over its training set, before it or at the onset."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from tqdm.auto import tqdm

from entropyfloor.sft.floor.base_cache import write_cache
from entropyfloor.sft.floor.base_states import LiveBase
from entropyfloor.sft.floor.onset_base import CachedOnset

logger = get_logger(__name__)


def cached_onset(trainer: Any) -> CachedOnset:
    """The base of an onset anchor that is written to ``floor_base_cache`` when it is taken."""
    return CachedOnset(
        trainer.model,
        Path(trainer.args.floor_base_cache),
        k=trainer.args.floor_base_top_k,
        write=partial(write_base_cache, trainer),
    )


def write_base_cache(trainer: Any, live: LiveBase, base: str) -> None:
    """Cache ``live`` on the training set in ``floor_base_cache``; no random state is consumed.

    Args:
        trainer: a SEDTrainer; its processes share the work.
        live: its model as it is.
        base: fingerprint of ``live``.

    """
    args, accelerator = trainer.args, trainer.accelerator
    folder, k = Path(args.floor_base_cache), args.floor_base_top_k

    def hidden_of(batch: dict[str, Any]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with trainer.compute_loss_context_manager():
            return live(batch["labels"], **inputs, use_cache=False).hidden

    logger.info(f"caching the base model's {k} most likely tokens in {folder}")
    loader = tqdm(
        trainer.get_test_dataloader(trainer.train_dataset),
        desc=f"base model's {k} most likely tokens",
        disable=args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    with torch.random.fork_rng(), torch.no_grad():
        write_cache(
            folder,
            (trainer._prepare_inputs(batch) for batch in loader),
            hidden_of=hidden_of,
            model=live.model,
            base=base,
            k=k,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        )
