"""A small model trained from scratch, as a model directory that appears complete or not at all.

Two experiments need a model that trains in seconds: ``quick_model`` (conversations, for the quick
demo) and ``small_model`` (characters, for the small task). Architecture, tokenizer and data are
theirs; the optimizer and how the result gets to disk are here.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def model_directory(target: Path, build: Callable[[], tuple[Any, Any]]) -> Path:
    """Find a model at ``target``, or build and save it there.

    Args:
        target: the model directory; safetensors and tokenizer files.
        build: returns (model, tokenizer); not called where ``target`` exists.

    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        model, tokenizer = build()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def train_from_scratch(
    model: Any,
    batches: Iterator[dict[str, Any]],
    *,
    steps: int,
    learning_rate: float,
    schedule: Callable[[Any], Any],
) -> Any:
    """The model after ``steps`` steps of AdamW.

    Args:
        model: fp32, random weights; trained in place.
        batches: what it is called with, ``labels`` included; one per step.
        steps: optimizer steps.
        learning_rate: what the schedule scales.
        schedule: optimizer -> learning-rate scheduler, stepped after every step.

    """
    import torch
    from rich.console import Console
    from rich.progress import track

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    scheduler = schedule(optimizer)
    model.train()
    for _ in track(range(steps), "building a small model", console=Console(stderr=True)):
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model.eval()
