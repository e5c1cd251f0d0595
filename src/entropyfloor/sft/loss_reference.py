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

import torch
from torch import Tensor

from entropyfloor.models.loss_head import LossHead, needs_reference
from entropyfloor.models.ranks import gathered
from entropyfloor.sft.floor.building import refuse_under_sharding
from entropyfloor.sft.floor.reference_cache import CachedOnset, cached_reference
from entropyfloor.sft.floor.reference_model import (
    GivenModel,
    ReferenceModel,
    RefreshedModel,
    SnapshotModel,
    starting_model,
    takes_over,
)
from entropyfloor_losses import CrossEntropyLoss, TokenStatistics, sequence_weights

_LABELS = "labels"  # folder of the labels' log-probabilities, in that of the cache


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
        trainer: that trains it, if there is one.

    Raises:
        ValueError: what `check_reference` and `refuse_under_sharding` refuse.

    """

    def __init__(self, head: LossHead, options: Any, model: Any, trainer: Any = None) -> None:
        check_reference(head.loss, options)
        self._head, self._options, self._model, self._trainer = head, options, model, trainer
        self._snapshot: RefreshedModel | None = None
        loss: Any = head.loss
        if not (needs_reference(loss) or weighs_by_reference(loss)):
            return
        refuse_under_sharding(trainer, options, f"loss {loss.name!r}")
        if weighs_by_reference(loss) and takes_over(trainer):
            raise ValueError(
                f"loss {loss.name!r} reads its reference from a cache that is filled before "
                "DeepSpeed or FSDP take the model over. Use DDP, or another loss"
            )
        if loss.reference == "snapshot":
            self._snapshot = RefreshedModel(model, late=takes_over(trainer))
            head.reference = self._snapshot
        elif needs_reference(loss):
            cached = getattr(options, "reference_cache", None) is not None
            head.reference = self._build(copied=not cached)

    def _build(self, *, copied: bool) -> ReferenceModel:
        name = getattr(self._options, "reference_model", None)
        if name is not None:
            return GivenModel(name, self._model, self._trainer)
        return starting_model(self._model, copied=copied, late=takes_over(self._trainer))

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
            head.reference.check_folder(resumed=resumed)
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

    def ready(self, checkpoint: Path | None) -> None:
        """Once the model is where and how it is trained: a trainer may have sharded it by then.

        Args:
            checkpoint: that the run goes on from, or None.

        Raises:
            ValueError: it lacks the reference of the loss, or of the floor's anchor.

        """
        if isinstance(self._head.reference, ReferenceModel):
            self._head.reference.begin(self._head, checkpoint)

    def save(self, checkpoint: Path, *, main: bool) -> None:
        """Write what `ready` reads; ``main`` writes what all processes have in common."""
        if isinstance(self._head.reference, ReferenceModel):
            self._head.reference.save(checkpoint, main=main)


def with_step_weights(
    trainer: Any, head: LossHead, batches: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The micro-batches of a step with ``advantages``, where the loss ranks sequences.

    They are evaluated first, without gradient and dropout: one more forward pass a step. Then each
    gets its tokens' weights, of ranks over micro-batches and processes.

    Args:
        trainer: whose model is evaluated; every process must call.
        head: of its model, with ``weights_reference``.
        batches: collated, with ``labels``; a collator that shifts them is refused.

    """
    loss: Any = head.loss
    if not getattr(loss, "ranks_the_batch", False):
        return batches
    parts = [_evaluated(trainer, head, batch) for batch in batches]
    names = ("scored", "log_prob", "reference_log_prob")
    flat = {n: torch.cat([part[n].flatten() for part in parts]) for n in names}
    positions = torch.cat([part["positions"].flatten() for part in parts])

    def gather(per_sequence: Tensor) -> Tensor:
        values = gathered(per_sequence.tolist())
        return torch.tensor(values, dtype=per_sequence.dtype, device=per_sequence.device)

    weights = sequence_weights(loss, TokenStatistics(**flat), positions, gather=gather)
    pieces = weights.split([part["scored"].numel() for part in parts])
    for batch, part, piece in zip(batches, parts, pieces, strict=True):
        # The forward leaves the first out, as it does with the labels.
        batch["advantages"] = torch.nn.functional.pad(piece.view(part["scored"].shape), (1, 0))
    return batches


def _evaluated(trainer: Any, head: LossHead, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Log-probabilities of a micro-batch's labels, its scored tokens and positions."""
    if batch.get("shift_labels") is not None:
        raise ValueError(
            f"loss {head.loss.name!r} ranks whole sequences, which context parallelism cuts; "  # type: ignore[attr-defined]
            "choose another loss"
        )
    inputs = trainer._prepare_inputs(batch)
    with trainer.compute_loss_context_manager():
        (output,) = head.evaluated(CrossEntropyLoss(), [inputs], trainer.model_wrapped)
    scored = output.scored
    assert head.weights_reference is not None
    targets = inputs["labels"][:, 1:]
    of_labels = head.weights_reference(targets, **inputs).label_log_probs
    assert of_labels is not None
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(scored.shape[1], device=scored.device).expand(scored.shape)
    else:
        positions = positions[:, :-1].clone()
        positions[:, 0] = 0  # a row begins a sequence, wherever its positions do
    return {
        "scored": scored,
        "log_prob": output.log_prob,
        "reference_log_prob": of_labels.to(output.log_prob.dtype),
        "positions": positions,
    }
