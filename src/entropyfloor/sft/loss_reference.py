"""What a loss compares with while it trains: built, cached, refreshed, saved, resumed.

A loss says by its attribute ``reference`` what it needs,

    "initial"    the model that training starts from, or ``reference_model``   (GIFT, ASFT, TailSFT)
    "snapshot"   the model in training, refreshed each ``refresh_steps``       (PSFT)

and its requests where: ``request`` beside the model's own logits, ``weights_request`` for weights
of whole sequences, of which the labels' log-probabilities are enough: one pass before the first
step, 4 bytes a token on disk. One reference serves the loss and an anchor of the entropy floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entropyfloor.models.loss_head import LossHead
from entropyfloor.sft.floor.reference_cache import CachedOnset, cached_reference
from entropyfloor.sft.floor.reference_model import (
    ReferenceModel,
    SnapshotModel,
    given_model,
    starting_model,
)

_LABELS = "labels"  # folder of the labels' log-probabilities, in that of the cache


def needs_reference(loss: Any) -> bool:
    """Whether a reference stands beside the loss in every forward."""
    request = getattr(loss, "request", None)
    return request is not None and bool(request.needs_reference)


def weighs_by_reference(loss: Any) -> bool:
    """Whether weights of sequences come from a reference's log-probabilities."""
    request = getattr(loss, "weights_request", None)
    return request is not None and bool(request.needs_reference)


def check_reference(loss: Any, options: Any) -> None:
    """Refuse settings with which a loss cannot be right, or that it would not use.

    Args:
        loss: in its final form.
        options: `SEDConfig`, or `FloorOptions` alone.

    Raises:
        ValueError: see above.

    """
    kind, name = getattr(loss, "reference", None), getattr(loss, "name", type(loss).__name__)
    other = getattr(options, "reference_model", None)
    if other is not None and kind != "initial":
        raise ValueError(
            f"reference_model is {other!r} and loss {name!r} compares with no model that is given"
        )
    anchored = (
        options.entropy_floor is not None
        and options.on_violation == "constrain"
        and options.build_term().needs_reference
    )
    if anchored and needs_reference(loss):
        shared = kind == "initial" and other is None and options.floor_place == "anchor"
        if not shared:
            places = "'uniform'"
            places += " or 'anchor'" if kind == "initial" and other is None else ""
            raise ValueError(
                f"loss {name!r} and floor_place={options.floor_place!r} would each need a "
                f"reference of their own in every forward, and there is one: floor_place={places}"
            )
    if getattr(options, "reference_cache", None) is None:
        return
    if not (kind == "initial" or anchored):
        raise ValueError(
            f"reference_cache keeps what neither loss {name!r} nor the entropy floor needs, so "
            "nothing would use it; it is for floor_place onset_anchor and anchor, and for losses "
            "that compare with the model training starts from, or with reference_model"
        )


class LossReference:
    """The reference of one run's loss; does nothing for a loss without one.

    Args:
        head: whose loss it is; gets its reference.
        options: `SEDConfig`, or `FloorOptions` alone.
        model: that training starts from, PEFT's wrapper included.
        sharded: whether DeepSpeed or FSDP shard it.

    Raises:
        ValueError: what `check_reference` refuses, or a sharded model.

    """

    def __init__(self, head: LossHead, options: Any, model: Any, *, sharded: bool) -> None:
        check_reference(head.loss, options)
        self._head, self._options, self._model = head, options, model
        self._snapshot: SnapshotModel | None = None
        loss: Any = head.loss
        if not (needs_reference(loss) or weighs_by_reference(loss)):
            return
        if sharded:
            raise ValueError(
                f"loss {loss.name!r} needs a whole reference model on every process, which "
                "DeepSpeed and FSDP shard. Use DDP, or another loss"
            )
        if loss.reference == "snapshot":
            head.reference = self._snapshot = SnapshotModel(model)
            self._snapshot.capture()
        elif needs_reference(loss):
            cached = getattr(options, "reference_cache", None) is not None
            head.reference = self._build(copied=not cached)

    def _build(self, *, copied: bool) -> ReferenceModel:
        name = getattr(self._options, "reference_model", None)
        if name is not None:
            return given_model(name, self._model)
        return starting_model(self._model, copied=copied)

    def begin(self, trainer: Any, *, resumed: bool) -> None:
        """Read from the cache from now on, made if missing; before the first step of `SEDTrainer`.

        Args:
            trainer: of the data.
            resumed: whether the run goes on from a checkpoint.

        Raises:
            ValueError: a streamed set, or the cache of another model or k.

        """
        head, args = self._head, self._options
        folder = getattr(args, "reference_cache", None)
        if weighs_by_reference(head.loss) and head.weights_reference is None:
            place = Path(args.output_dir) / "reference_cache" if folder is None else Path(folder)
            reference = self._build(copied=False)
            head.weights_reference = cached_reference(trainer, reference, place / _LABELS, k=0)
        if isinstance(head.reference, CachedOnset):
            head.reference.begin(resumed=resumed)
        live = head.reference
        moving = isinstance(live, SnapshotModel)
        if folder is not None and isinstance(live, ReferenceModel) and not moving:
            head.reference = cached_reference(
                trainer,
                live,
                Path(folder),
                k=args.reference_top_k,
                evaluation=needs_reference(head.loss),
            )

    def step(self) -> None:
        """Close an optimiser step: refresh a snapshot that is due."""
        if self._snapshot is None:
            return
        self._snapshot.age += 1
        if self._snapshot.age >= self._head.loss.refresh_steps:  # type: ignore[attr-defined]
            self._snapshot.capture()

    def save(self, checkpoint: Path) -> None:
        """Write what `load` reads."""
        if self._snapshot is not None:
            self._snapshot.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it holds no reference of this loss.

        """
        if self._snapshot is not None:
            self._snapshot.load(checkpoint)
