"""`LossHead`: what a patched model evaluates and returns, and the sums that a log and a floor read.

``loss_forward.py`` computes it inside the model's forward, ``patch_model.py`` puts that there. Does
not know which trainer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from entropyfloor.models.model_state import evaluating
from entropyfloor.models.ranks import gathered, summed, wide_dtype
from entropyfloor_losses import (
    EntropyTerm,
    PenalisedLoss,
    ReferenceHead,
    ReferenceTopK,
    StatisticsRequest,
    TokenStatistics,
    loss_by_name,
    needs_calibration,
)

TokenLoss = Callable[[TokenStatistics], Tensor]
SUMS = ("tokens", "objective", "ce", "entropy", "top1", "selected", "top_k_mass", "reference_kl")
HEAD_ATTRIBUTE = "_entropyfloor_head"  # of a patched model


@dataclass
class LossHeadOutput(ModelOutput):
    """What a patched model returns for ``labels``. ``[batch, length]`` is that of the next tokens.

    Attributes:
        loss: scalar with the gradient: the objective by its token count, and in a mixture of
            experts the weighted balancing loss, as in the model's own forward.
        logits: None, always: training loops that would measure something on them look for it.
        aux_loss: scalar, the balancing loss, where router logits were asked for.
        objective: scalar with the gradient: sum of the loss over this call's scored tokens.
        scored: ``[batch, length]`` bool, False where the label is -100; what follows is 0 there.
        log_prob: ``[batch, length]`` log-probability of the label, nats, detached.
        entropy: ``[batch, length]`` of the next-token distribution, nats, detached.
        is_top1: ``[batch, length]`` bool, whether the label is the most likely token.
        top_k_mass: ``[batch, length]`` mass of the loss's k most likely tokens, detached.
        selected: ``[batch, length]`` bool, tokens on which the loss differs from cross-entropy.
        reference_kl: ``[batch, length]`` KL from the reference model, nats, detached, or None.

    """

    # What is always there has a default too, as transformers' outputs must have.
    loss: Tensor = None  # type: ignore[assignment]
    logits: Tensor | None = None
    aux_loss: Tensor | None = None
    objective: Tensor = None  # type: ignore[assignment]
    scored: Tensor = None  # type: ignore[assignment]
    log_prob: Tensor = None  # type: ignore[assignment]
    entropy: Tensor = None  # type: ignore[assignment]
    is_top1: Tensor = None  # type: ignore[assignment]
    top_k_mass: Tensor = None  # type: ignore[assignment]
    selected: Tensor = None  # type: ignore[assignment]
    reference_kl: Tensor | None = None


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
        for output in self.evaluated(replace(waiting, tau=1.0), batches, model):
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
        for output in self.evaluated(loss_by_name("ce"), batches, model):
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

    def evaluated(
        self, loss: TokenLoss, batches: Any, model: Any = None
    ) -> Iterator[LossHeadOutput]:
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


def needs_reference(loss: Any) -> bool:
    """Whether a reference stands beside the loss in every forward."""
    request = getattr(loss, "request", None)
    return isinstance(request, StatisticsRequest) and request.needs_reference


def _restore(model: Any, name: str, before: Any) -> None:
    """Put back an attribute of the object; where there was none the class's shows again."""
    if before is not None:
        model.__dict__[name] = before
    else:
        model.__dict__.pop(name, None)
