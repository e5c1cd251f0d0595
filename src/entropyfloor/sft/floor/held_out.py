"""``entropy_floor="auto"``: the floor that held-out rows can have.

A model whose confidence is right has, on tokens it was not trained on, an entropy equal to its
cross-entropy: E[H(p)] = E[-log p_y]. Training lowers both, until entropy goes on falling and the
held-out loss does not: from there on confidence is not earned. The floor is the lowest held-out
loss seen so far, times a factor. Where the data knows one way to go on it becomes small by itself.

It comes into force once the loss pays for less than `_EARNED` of what entropy falls by. Before that
there is nothing to hold: a model that is too sure of itself from the start has a loss far above its
entropy, which falls as it learns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.ranks import largest
from entropyfloor.sft.calibration import calibration_sample, spread_evenly
from entropyfloor.sft.floor.options import FloorOptions

Batches = Iterable[Mapping[str, Any]]

_EARNED = 0.5  # of a nat of entropy lost, what the held-out loss has to fall by
_STATE = ("lowest_loss", "in_force", "loss", "entropy")


@dataclass
class HeldOutSlice:
    """Entropy and loss of held-out rows, and the floor that follows from them.

    Args:
        batches: makes the batches, a forward's arguments with ``labels``; of several processes,
            this one's share.
        factor: of the lowest loss.
        source: of the rows, for the log.
        autocast: makes the context of a forward.

    The remaining fields are the state, in `state_dict`: the lowest loss, whether the floor is in
    force, and loss and entropy as last measured, nats per token.

    """

    batches: Callable[[], Batches]
    factor: float
    source: str
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    lowest_loss: float = math.inf
    in_force: bool = False
    loss: float = math.nan
    entropy: float = math.nan
    seconds: float = 0.0  # the last measurement took, on the slowest process
    _kept: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def floor(self) -> float:
        """Nats; once there was a measurement."""
        return max(self.factor * self.lowest_loss, 1e-6)  # a loss may be 0

    def measure(self, head: LossHead, model: Any) -> None:
        """Measure the model as it is, and decide; every process must call.

        Args:
            head: of the patched model.
            model: to call, as the trainer wraps it.

        Raises:
            ValueError: no scored token.

        """
        started = time.perf_counter()
        self._kept = self._kept or list(self.batches())
        with self.autocast():
            loss, entropy = head.held_out_means(self._kept, model)
        # Each nat of entropy that is earned is paid with a nat of loss. Before the first
        # measurement both are nan, and no comparison holds.
        lost = self.entropy - entropy
        if lost > 0 and self.loss - loss < _EARNED * lost:
            self.in_force = True
        self.loss, self.entropy = loss, entropy
        self.lowest_loss = min(self.lowest_loss, loss)
        self.seconds = largest(time.perf_counter() - started, head.device)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; JSON numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        for name in _STATE:
            setattr(self, name, state[name])


def held_out_slice(options: FloorOptions, trainer: Any, batches: Batches | None) -> HeldOutSlice:
    """The slice of a run: batches that were passed, or rows of the trainer's evaluation set.

    Args:
        options: with ``entropy_floor="auto"``.
        trainer: that trains, if there is one.
        batches: a forward's arguments with ``labels``, or None.

    Raises:
        ValueError: there is neither.

    """
    factor = options.floor_factor
    if batches is not None:
        rows = list(batches)
        return HeldOutSlice(lambda: rows, factor, f"{len(rows)} held-out batches")
    dataset, name = getattr(trainer, "eval_dataset", None), "the evaluation set"
    if isinstance(dataset, dict):
        key, dataset = next(iter(dataset.items()))
        name = f"the evaluation set {key!r}"
    if dataset is None:
        raise ValueError(
            "entropy_floor='auto' is read off the loss of held-out rows, and there are none: give "
            "the trainer an eval_dataset (SEDTrainer holds out a part of the training set by "
            "itself), or EntropyFloorCallback(held_out=[batches with labels])"
        )
    sample = calibration_sample(dataset, options.floor_held_out_rows)

    def prepared() -> Batches:
        # Not get_eval_dataloader: with persistent workers Trainer keeps that one.
        for batch in trainer.get_test_dataloader(sample):
            yield trainer._prepare_inputs(batch)

    return HeldOutSlice(
        prepared, factor, f"{len(sample)} rows of {name}", trainer.compute_loss_context_manager
    )


def hold_out(dataset: Any, rows: int) -> tuple[Any, Any]:
    """Split a training set: what is left of it, and rows with other prompts that are held out.

    Args:
        dataset: a ``datasets.Dataset`` or ``IterableDataset``. Of the first, rows spread evenly are
            held out; of a stream, its first ones.
        rows: how many at most; of a dataset no more than a fifth.

    Raises:
        ValueError: too few rows.

    """
    names: Any = getattr(dataset, "column_names", None) or next(iter(dataset), {})
    columns = [name for name in ("prompt", "messages", "conversations") if name in names][:1]

    def prompt(row: Mapping[str, Any]) -> str:
        value = row[columns[0]]
        answered = columns[0] != "prompt" and len(value) > 1
        return repr(value[:-1] if answered else value)

    if not hasattr(dataset, "__len__"):
        held = Dataset.from_list(list(dataset.take(rows)))
        left = dataset.skip(len(held))
        if columns:
            seen = {prompt(row) for row in held}
            left = left.filter(lambda row: prompt(row) not in seen)
        return left, held
    count = min(rows, len(dataset) // 5)
    if count < 1:
        raise ValueError(
            f"entropy_floor='auto' holds out a fifth of the training set at most, and it has "
            f"{len(dataset)} rows: give an eval_dataset"
        )
    chosen = set(spread_evenly(len(dataset), count))
    if columns:
        # Other answers to a held-out prompt would tell the model what it is measured on.
        prompts = [prompt(row) for row in dataset.select_columns(columns)]
        seen = {prompts[i] for i in chosen}
        chosen = {i for i, text in enumerate(prompts) if text in seen}
    if len(chosen) > len(dataset) // 2:
        raise ValueError(
            f"entropy_floor='auto' holds out {count} rows and all others with their prompts, which "
            f"would be {len(chosen)} of {len(dataset)}: give an eval_dataset"
        )
    left = [i for i in range(len(dataset)) if i not in chosen]
    return dataset.select(left), dataset.select(sorted(chosen))
