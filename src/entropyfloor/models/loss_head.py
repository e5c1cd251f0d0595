"""Make a causal language model compute our objective inside its forward.

trl's SFTTrainer patches the model's forward with its fused head, calls it with
``fused_lm_head=True`` and reduces ``-outputs.log_probs.sum()``. We replace that forward by one with
the same contract whose ``log_probs`` is a scalar: minus the *sum* of the objective over the scored
tokens, its gradient already computed chunk by chunk. Everything around it (reduction, accumulation,
auxiliary losses, metrics) is inherited. Running inside the model's forward is what keeps DDP, FSDP
and PEFT wrappers working.

Knows: where the backbone, the head and the MoE router are. Does not know: which loss or trainer.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from entropyfloor.models.logit_transform import head_options
from entropyfloor_losses import (
    IGNORE_INDEX,
    EntropyTerm,
    PenalisedLoss,
    ReferenceHead,
    ReferenceTopK,
    TokenStatistics,
    linear_loss,
)


@dataclass
class LossHeadOutput(FusedCausalLMOutput):
    """trl's fused output, with the objective in place of the log-probabilities.

    Attributes:
        log_probs: scalar, minus the sum of the objective over this call's scored tokens; carries
            the gradient. (Not per token: trl only ever sums it.)
        token_log_probs: ``[batch, length]`` log-probability of the labels, detached, 0 if ignored.
        top_k_mass: ``[batch, length]`` top-k mass at the loss's k, detached, 0 where ignored.
        selected: ``[batch, length]`` bool, tokens on which the loss differs from cross-entropy.
        reference_kl: ``[batch, length]`` KL between reference and model, detached, or None.

    """

    token_log_probs: Tensor | None = None
    top_k_mass: Tensor | None = None
    selected: Tensor | None = None
    reference_kl: Tensor | None = None


@dataclass
class LossHead:
    """What a patched model evaluates. Fields may be assigned between steps.

    Attributes:
        loss: maps `TokenStatistics` to per-token values.
        term: of entropy, added to the loss in training mode only; None for none.
        weight: of the term; at 0 it is not computed.
        reference: for a term that needs it: maps a forward's next-token targets and arguments to
            the reference model at these positions.

    """

    loss: Callable[[TokenStatistics], Tensor]
    term: EntropyTerm | None = None
    weight: float = 0.0
    reference: Callable[..., ReferenceHead | ReferenceTopK] | None = None


def attach_loss_head(model: PreTrainedModel, loss: Callable[[TokenStatistics], Tensor]) -> LossHead:
    """Patch ``model.forward``; without ``fused_lm_head=True`` it is what it was.

    Args:
        model: a causal language model, not yet wrapped by DDP or FSDP; below PEFT if there is PEFT.
        loss: maps `TokenStatistics` to per-token values.

    Returns:
        The `LossHead` that the patched forward reads its loss from.

    Raises:
        ValueError: the model has no head with a plain weight matrix, or the loss asks for the mass
            of more tokens than the vocabulary has.

    """
    _check_head(model, loss)
    head = LossHead(loss)
    text_config = model.config.get_text_config()
    previous_forward = model.forward
    options = head_options(model.config)

    # The original signature: `generate` and `Trainer` validate keyword arguments against it.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        advantages: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            label_arguments = {"labels": labels, "shift_labels": shift_labels}
            kwargs.update(
                {name: value for name, value in label_arguments.items() if value is not None}
            )
            return previous_forward(*args, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        if getattr(text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        if shift_labels is None:
            assert labels is not None
            targets = labels[:, 1:]
            advantages = None if advantages is None else advantages[:, 1:]
        else:
            targets = shift_labels
        # The weight changes from step to step: evaluations are of the loss alone.
        term = head.term if head.weight > 0 and self.training else None
        objective_of = head.loss if term is None else PenalisedLoss(head.loss, term, head.weight)
        reference = None
        if term is not None and term.needs_reference:
            assert head.reference is not None
            reference = head.reference(targets, *args, **kwargs)
        backbone = self.base_model(*args, **kwargs)
        hidden = backbone.last_hidden_state
        if shift_labels is None:
            hidden = hidden[:, :-1]
            if isinstance(reference, ReferenceHead):
                reference = replace(reference, hidden=reference.hidden[:, :-1])
        # Looked up on each call: PEFT and FSDP replace the head after patching.
        lm_head = self.get_output_embeddings()
        weight, bias = _full(lm_head.weight), _full(getattr(lm_head, "bias", None))
        assert weight is not None
        hidden, targets = hidden.to(weight.device), targets.to(weight.device)
        # ZeRO-3 shards parameters to nothing: gather before anything is computed from them.
        with maybe_gather_lm_head_ctx(weight, bias):
            if not torch.is_autocast_enabled(hidden.device.type):
                weight = weight.to(hidden.dtype)
                bias = None if bias is None else bias.to(hidden.dtype)
            # num_items=1 leaves the sum: the trainer divides by the global count.
            objective, statistics = linear_loss(
                hidden,
                weight,
                targets,
                objective_of,
                bias=bias,
                num_items=1,
                reference=reference,
                advantages=advantages,
                **options,
            )
        aux_loss = None
        if kwargs.get("output_router_logits"):
            aux_loss = load_balancing_loss_func(
                backbone.router_logits,
                text_config.num_experts,
                text_config.num_experts_per_tok,
                kwargs.get("attention_mask"),
            )
        return LossHeadOutput(
            log_probs=-objective,
            entropy=statistics.entropy,
            is_top1=statistics.is_top1,
            label_mask=targets != IGNORE_INDEX,
            aux_loss=aux_loss,
            token_log_probs=statistics.log_prob,
            top_k_mass=statistics.top_k_mass,
            selected=_selected(objective_of, statistics),
            reference_kl=statistics.get("reference_kl"),
        )

    model.forward = types.MethodType(forward, model)
    return head


def _check_head(model: PreTrainedModel, loss: Any) -> None:
    lm_head = model.get_output_embeddings()
    weight = getattr(lm_head, "weight", None)
    if (
        not isinstance(weight, Tensor)
        or weight.ndim not in (1, 2)
        or not weight.is_floating_point()
    ):
        raise ValueError(
            f"the output embedding of {type(model).__name__} is {type(lm_head).__name__}, which "
            "has no plain weight matrix to compute the loss from. An adapter on the head or its "
            "quantisation hides it: train the head itself with `modules_to_save=['lm_head']`, or "
            "leave it frozen and out of the quantisation"
        )
    vocabulary = model.config.get_text_config().vocab_size
    request = getattr(loss, "request", None)
    if request is not None and request.top_k > vocabulary:
        raise ValueError(
            f"top_k is {request.top_k}, more than the vocabulary of {vocabulary} tokens"
        )


def _full(parameter: Tensor | None) -> Tensor | None:
    """Gather a parameter that FSDP2 shards as a DTensor: hidden states are plain tensors.

    Each process has the gradient of its own tokens, and FSDP averages gradients over processes.
    Without `grad_placements` each would keep, of its own shard, the gradient of its own tokens.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def _selected(loss: Any, statistics: TokenStatistics) -> Tensor:
    """A loss without a ``selected`` method (a plain function) acts on every scored token."""
    selected = getattr(loss, "selected", None)
    return statistics.scored if selected is None else selected(statistics)
