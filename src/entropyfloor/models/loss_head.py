"""The loss inside a model's forward: what a patched model evaluates, and what it returns.

The backbone is the model's own; the head's logits live a chunk at a time, and so does the gradient
of the loss (`entropyfloor_losses.linear_loss`). Running inside the model's forward is what keeps
DDP, FSDP, DeepSpeed and PEFT wrappers working. ``patch_model.py`` puts it there.

Knows: where the backbone, the head and the MoE router are. Does not know: which trainer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from entropyfloor.models.backbone import of_backbone
from entropyfloor.models.evaluation_mode import evaluating
from entropyfloor.models.head_output import LossHeadOutput
from entropyfloor.models.head_weight import whole_head
from entropyfloor.models.logit_transform import head_options
from entropyfloor.models.ranks import gathered, summed, wide_dtype
from entropyfloor.models.sequence_weights import weights_of_sequences
from entropyfloor_losses import (
    EntropyTerm,
    PenalisedLoss,
    ReferenceHead,
    ReferenceTopK,
    SequenceWeights,
    StatisticsRequest,
    TokenStatistics,
    linear_loss,
    loss_by_name,
    needs_calibration,
    token_mean,
    token_statistics,
)

TokenLoss = Callable[[TokenStatistics], Tensor]
SUMS = ("tokens", "objective", "ce", "entropy", "top1", "selected", "top_k_mass", "reference_kl")
HEAD_ATTRIBUTE = "_entropyfloor_head"  # of a patched model


@dataclass(eq=False)
class LossHead:
    """What a patched model evaluates. Fields may be assigned between steps.

    Attributes:
        model: that was patched; below PEFT if there is PEFT.
        loss: maps `TokenStatistics` to per-token values.
        term: of entropy, added to the loss in training mode only; None for none.
        weight: of the term; at 0 it is not computed.
        reference: for a term or a loss that needs it: maps a forward's next-token targets and
            arguments to the reference model at these positions.
        weights_reference: the same for weights of whole sequences, the labels' log-probabilities.
        on_labels: whether every call with ``labels`` is answered; otherwise only those with
            ``entropyfloor_head=True``.
        evaluation_logits: whether calls with labels in evaluation mode return the model's own
            output, logits included, with our loss in it; False spares the logits' memory.
        calls: how often the loss was computed in training mode.

    """

    model: PreTrainedModel
    loss: TokenLoss
    term: EntropyTerm | None = None
    weight: float = 0.0
    reference: Callable[..., ReferenceHead | ReferenceTopK] | None = None
    weights_reference: Callable[..., ReferenceTopK] | None = None
    on_labels: bool = True
    evaluation_logits: bool = True
    calls: int = 0
    _undo: tuple[Any, Any, Any] | None = None  # our forward; what stood in its place, and beside it
    _sums: dict[bool, Tensor] = field(default_factory=dict)

    @property
    def objective(self) -> TokenLoss:
        """The loss with the term; evaluations are of the loss alone: the weight changes by step."""
        term = self.term if self.weight > 0 and self.model.training else None
        return self.loss if term is None else PenalisedLoss(self.loss, term, self.weight)

    @property
    def attached(self) -> bool:
        """Whether the model's forward still computes this loss."""
        return self._undo is not None

    def asked(self, entropyfloor_head: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a forward with these arguments is this head's to answer."""
        labelled = kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None
        return bool(
            entropyfloor_head
            or (entropyfloor_head is None and self.on_labels and labelled and self.attached)
        )

    def wants_loss_alone(self, entropyfloor_head: Any, kwargs: dict[str, Any]) -> bool:
        """Whether it is answered without logits; ``skip_logits`` is Liger's word, and Trainer's."""
        alone = entropyfloor_head or self.model.training or kwargs.get("skip_logits", False)
        return bool(alone) or not self.evaluation_logits

    def detach(self) -> None:
        """Give the model its own forward back; a second call does nothing."""
        if self._undo is None:
            return
        (ours, before, kwargs_before), self._undo = self._undo, None
        if self.model.__dict__.get("forward") is ours:
            _restore(self.model, "forward", before)
        # Otherwise another wrapper holds our forward, which from now on hands every call through.
        _restore(self.model, "accepts_loss_kwargs", kwargs_before)
        _restore(self.model, HEAD_ATTRIBUTE, None)

    def pop_sums(self, *, training: bool = True) -> dict[str, float]:
        """Sums over the scored tokens of all processes since the last call; every one must call.

        Args:
            training: those of forwards in training mode, or those in evaluation mode.

        Returns:
            ``tokens`` (how many), ``objective``, ``ce``, ``entropy``, ``reference_kl`` (nats),
            ``top_k_mass``, and ``top1`` and ``selected`` (counts).

        """
        nothing = torch.zeros(len(SUMS), dtype=wide_dtype(self.device), device=self.device)
        total = summed(self._sums.pop(training, nothing))
        return dict(zip(SUMS, total.tolist(), strict=True))

    def calibrate(self, batches: Any, model: Any = None) -> None:
        """Replace tau="auto" by a quantile of the model's top-k mass; otherwise nothing.

        Dropout is off and no random number is used up.

        Args:
            batches: iterable of a forward's arguments with ``labels``; of several processes, this
                one's share. A few hundred rows are enough.
            model: to call, where the patched one is wrapped (FSDP, DeepSpeed).

        Raises:
            ValueError: no scored token.

        """
        waiting: Any = self.loss
        if not needs_calibration(waiting):
            return
        masses: list[float] = []
        for output in self._evaluated(replace(waiting, tau=1.0), batches, model):
            assert output.top_k_mass is not None
            masses.extend(output.top_k_mass[output.scored].tolist())
        self.loss = waiting.calibrated(torch.tensor(gathered(masses), dtype=torch.float64))

    def held_out_means(self, batches: Any, model: Any = None) -> tuple[float, float]:
        """Cross-entropy and entropy of rows, nats per token; dropout off, no random number used up.

        Args:
            batches: as in `calibrate`; every process must call, and gets the means of all.
            model: to call, where the patched one is wrapped (FSDP, DeepSpeed).

        Raises:
            ValueError: no scored token.

        """
        total = torch.zeros(3, dtype=wide_dtype(self.device), device=self.device)
        for output in self._evaluated(loss_by_name("ce"), batches, model):
            assert output.scored is not None and output.log_prob is not None
            assert output.entropy is not None
            sums = (-output.log_prob.sum(), output.entropy.sum(), output.scored.sum())
            total += torch.stack([value.to(total) for value in sums])
        loss, entropy, tokens = summed(total).tolist()
        if not tokens:
            raise ValueError("the held-out rows have no scored token: every label is -100")
        return loss / tokens, entropy / tokens

    @property
    def device(self) -> torch.device:
        """Of the head's weight."""
        return self.model.get_output_embeddings().weight.device

    def _evaluated(self, loss: TokenLoss, batches: Any, model: Any) -> Iterator[LossHeadOutput]:
        """Another loss's outputs, which leave no trace: no sum, no random number, no mode."""
        network = self.model if model is None else model
        chosen, sums = self.loss, dict(self._sums)
        on_gpu = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            self.loss = loss
            with torch.random.fork_rng(devices=on_gpu), torch.no_grad(), evaluating(network):
                for batch in batches:
                    yield network(**batch, entropyfloor_head=True)
        finally:
            self.loss, self._sums = chosen, sums

    def _record(self, output: LossHeadOutput, training: bool) -> None:
        self.calls += training
        assert output.scored is not None and output.objective is not None
        assert output.log_prob is not None and output.entropy is not None
        assert output.is_top1 is not None and output.selected is not None
        assert output.top_k_mass is not None
        tokens = output.scored.sum()
        kl = torch.zeros_like(tokens) if output.reference_kl is None else output.reference_kl.sum()
        values = (
            tokens,
            output.objective.detach(),
            -output.log_prob.sum(),
            output.entropy.sum(),
            output.is_top1.sum(),
            output.selected.sum(),
            output.top_k_mass.sum(),
            kl,
        )
        stacked = torch.stack([value.to(wide_dtype(tokens.device)) for value in values])
        before = self._sums.get(training)
        self._sums[training] = stacked if before is None else before + stacked


def loss_without_logits(
    head: LossHead,
    *args: Any,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    advantages: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    **kwargs: Any,
) -> LossHeadOutput:
    """The backbone, then the loss from its hidden states; arguments are the model's forward's."""
    model = head.model
    text_config = model.config.get_text_config()
    kwargs = of_backbone(kwargs)
    if getattr(text_config, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    targets = _targets(labels, shift_labels)
    if shift_labels is None and advantages is not None:
        advantages = advantages[:, 1:]
    objective_of = head.objective
    reference = None
    if needs_reference(objective_of):
        if head.reference is None:
            raise ValueError(
                f"{type(head.loss).__name__} compares with a reference model: give the trainer "
                "EntropyFloorCallback(head), use SEDTrainer, or set head.reference"
            )
        reference = head.reference(targets, *args, **kwargs)
    backbone = model.base_model(*args, **kwargs)
    hidden = backbone.last_hidden_state
    if shift_labels is None:
        hidden = hidden[:, :-1]
        if isinstance(reference, ReferenceHead):
            reference = replace(reference, hidden=reference.hidden[:, :-1])
    # Looked up on each call: PEFT and FSDP replace the head after patching.
    with whole_head(model.get_output_embeddings()) as (weight, bias):
        hidden, targets = hidden.to(weight.device), targets.to(weight.device)
        if not torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(hidden.dtype)
            bias = None if bias is None else bias.to(hidden.dtype)
        weights: Tensor | SequenceWeights | None = advantages
        if advantages is None:
            positions = kwargs.get("position_ids")
            if positions is not None and shift_labels is None:
                positions = positions[:, :-1]
            weights = weights_of_sequences(head.loss, hidden, positions, training=model.training)
        # num_items=1 leaves the sum, which is divided below.
        objective, statistics = linear_loss(
            hidden,
            weight,
            targets,
            objective_of,
            bias=bias,
            num_items=1,
            reference=reference,
            advantages=weights,
            **head_options(model.config),
        )
    output = _output(objective, statistics, objective_of, num_items_in_batch)
    if kwargs.get("output_router_logits"):
        aux_loss = load_balancing_loss_func(
            backbone.router_logits,
            text_config.num_experts,
            text_config.num_experts_per_tok,
            kwargs.get("attention_mask"),
        )
        assert isinstance(aux_loss, Tensor) and output.loss is not None
        output["aux_loss"] = aux_loss
        output["loss"] = output.loss + _aux_weight(text_config) * aux_loss
    head._record(output, model.training)
    return output


def needs_reference(loss: Any) -> bool:
    """Whether a reference stands beside the loss in every forward."""
    request = getattr(loss, "request", None)
    return isinstance(request, StatisticsRequest) and request.needs_reference


def model_output(
    head: LossHead,
    own_forward: Callable[..., Any],
    *args: Any,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The model's own output, logits and all, with our loss in it."""
    if needs_reference(head.loss):
        raise ValueError(
            f"{type(head.loss).__name__} compares with a reference model, which an evaluation with "
            "logits has not at hand: set head.evaluation_logits = False"
        )
    kwargs.pop("skip_logits", None)
    theirs = own_forward(*args, **kwargs)
    as_mapping = isinstance(theirs, dict)
    logits = theirs["logits"] if as_mapping else theirs[0]
    targets = _targets(labels, shift_labels).to(logits.device)
    loss: Any = head.loss
    if shift_labels is None:
        logits = logits[:, :-1]
    weighted = hasattr(loss, "weights_request")
    # Row by row: the plain formulas hold several copies of the logits.
    rows = [
        token_statistics(
            row,
            row_targets,
            request=getattr(loss, "request", None),
            advantages=torch.ones_like(row_targets, dtype=row.dtype) if weighted else None,
        )
        for row, row_targets in zip(logits, targets, strict=True)
    ]
    objective = torch.stack([row.where_scored(loss(row)).sum() for row in rows]).sum()
    of_batch = {name: torch.stack([vars(row)[name] for row in rows]) for name in vars(rows[0])}
    output = _output(objective, TokenStatistics(**of_batch), loss, num_items_in_batch)
    head._record(output, False)
    if not as_mapping:
        return (output.loss, *theirs)
    total = output.loss
    if theirs.get("aux_loss") is not None:
        total = total + _aux_weight(head.model.config.get_text_config()) * theirs["aux_loss"]
    return type(theirs)(**{**theirs, "loss": total})


def _targets(labels: Tensor | None, shift_labels: Tensor | None) -> Tensor:
    if shift_labels is not None:
        return shift_labels
    assert labels is not None
    return labels[:, 1:]


def _output(
    objective: Tensor, statistics: TokenStatistics, loss: Any, num_items: int | Tensor | None
) -> LossHeadOutput:
    scored = statistics.scored
    reference_kl = statistics.get("reference_kl")
    # A loss without a ``selected`` method (a plain function) acts on every scored token.
    selected = getattr(loss, "selected", None)
    return LossHeadOutput(
        loss=token_mean(objective, scored.sum() if num_items is None else num_items),
        objective=objective,
        scored=scored,
        log_prob=statistics.log_prob.detach(),
        entropy=statistics.entropy.detach(),
        is_top1=statistics.is_top1,
        top_k_mass=statistics.top_k_mass,
        selected=scored if selected is None else selected(statistics),
        reference_kl=None if reference_kl is None else reference_kl.detach(),
    )


def _aux_weight(text_config: Any) -> float:
    return float(getattr(text_config, "router_aux_loss_coef", 0.0))


def _restore(model: Any, name: str, before: Any) -> None:
    """Put back an attribute of the object; where there was none the class's shows again."""
    if before is not None:
        model.__dict__[name] = before
    else:
        model.__dict__.pop(name, None)
