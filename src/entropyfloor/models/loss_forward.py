"""The loss inside a model's forward: what a patched model returns.

The backbone is the model's own; the head's logits live a chunk at a time, and so does the gradient
of the loss (`entropyfloor_losses.linear_loss`). Running inside the model's forward is what keeps
DDP, FSDP, DeepSpeed and PEFT wrappers working.

Under torch.compile the backbone is compiled, in its own frame. What calls it is stepped over, and
what comes after runs as it is: chunks follow from labels, sums live across steps, a reference
changes parameters.

Knows: where the backbone, the head and the MoE router are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from entropyfloor.models.lm_head import head_options, whole_head
from entropyfloor.models.loss_head import LossHead, LossHeadOutput, needs_reference
from entropyfloor_losses import (
    ReferenceHead,
    ReferenceTopK,
    SequenceWeights,
    TokenStatistics,
    linear_loss,
    token_mean,
    token_statistics,
)


@torch.compiler.disable(recursive=False)
def loss_without_logits(
    head: LossHead,
    *args: Any,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    advantages: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    documents: Any = None,
    **kwargs: Any,
) -> LossHeadOutput:
    """The backbone, then the loss from its hidden states; arguments are the model's forward's.

    Beside them ``documents``, by which a cached reference is looked up.
    """
    model = head.model
    text_config = model.config.get_text_config()
    kwargs = _of_backbone(kwargs)
    if getattr(text_config, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    targets = _targets(labels, shift_labels)
    if shift_labels is None and advantages is not None:
        # PEFT puts ignored labels before the others for prompt tuning's virtual tokens.
        virtual = targets.shape[1] + 1 - advantages.shape[1]
        advantages = pad(advantages, (virtual, 0))[:, 1:]
    reference = None
    if needs_reference(head.objective):
        if head.reference is None:
            raise ValueError(
                f"{type(head.loss).__name__} compares with a reference model: give the trainer "
                "EntropyFloorCallback(head), use SEDTrainer, or set head.reference"
            )
        of_cache = {} if documents is None else {"documents": documents}
        reference = torch.compiler.disable(head.reference)(targets, *args, **kwargs, **of_cache)
    backbone = model.base_model(*args, **kwargs)
    return _loss_of_states(
        head,
        backbone,
        targets,
        reference,
        advantages=advantages,
        num_items=num_items_in_batch,
        shifted=shift_labels is None,
        inputs=kwargs,
    )


@torch.compiler.disable
def _loss_of_states(
    head: LossHead,
    backbone: Any,
    targets: Tensor,
    reference: ReferenceHead | ReferenceTopK | None,
    *,
    advantages: Tensor | None,
    num_items: int | Tensor | None,
    shifted: bool,
    inputs: dict[str, Any],
) -> LossHeadOutput:
    """What a forward returns, from its backbone's output; ``shifted``: targets are one shorter."""
    model, objective_of, hidden = head.model, head.objective, backbone.last_hidden_state
    if shifted:
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
            positions = inputs.get("position_ids")
            if positions is not None and shifted:
                positions = positions[:, :-1]
            weights = _weights_of_sequences(head.loss, hidden, positions, training=model.training)
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
    output = _output(objective, statistics, objective_of, num_items)
    if inputs.get("output_router_logits"):
        text_config = model.config.get_text_config()
        aux_loss = load_balancing_loss_func(
            backbone.router_logits,
            text_config.num_experts,
            text_config.num_experts_per_tok,
            inputs.get("attention_mask"),
        )
        assert isinstance(aux_loss, Tensor)
        output["aux_loss"] = aux_loss
        output["loss"] = output.loss + _aux_weight(text_config) * aux_loss
    head._record(output, model.training)
    return output


def _weights_of_sequences(
    loss: Any, hidden: Tensor, position_ids: Tensor | None, *, training: bool
) -> Tensor | SequenceWeights | None:
    """What the head is given as advantages where the caller gives none.

    Args:
        loss: of the head.
        hidden: ``[batch, length, H]``.
        position_ids: ``[batch, length]``; None: a row is a sequence.
        training: whether the model is; evaluations weigh every token by 1.

    Raises:
        ValueError: a forward cannot form them.

    """
    if not hasattr(loss, "weights_request"):
        return None
    if not training:
        return torch.ones(hidden.shape[:-1], dtype=hidden.dtype, device=hidden.device)
    if getattr(loss, "ranks_the_batch", False):
        raise ValueError(
            f"{type(loss).__name__} ranks the sequences of a whole optimizer step, which a forward "
            "does not see: use SEDTrainer, or pass advantages=sequence_weights(...) of the step"
        )
    return SequenceWeights(loss, position_ids)


@torch.compiler.disable(recursive=False)
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
    targets = _targets(labels, shift_labels)
    return _with_our_loss(head, theirs, targets, num_items_in_batch, shifted=shift_labels is None)


@torch.compiler.disable
def _with_our_loss(
    head: LossHead, theirs: Any, targets: Tensor, num_items: int | Tensor | None, *, shifted: bool
) -> Any:
    as_mapping = isinstance(theirs, dict)
    logits = theirs["logits"] if as_mapping else theirs[0]
    targets = targets.to(logits.device)
    loss: Any = head.loss
    if shifted:
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
    output = _output(objective, TokenStatistics(**of_batch), loss, num_items)
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


def states_and_head(model: Any, read: Callable[..., None], *args: Any, **kwargs: Any) -> Tensor:
    """Hand ``read`` the last hidden states, and weight and bias of the whole head; no loss.

    Returns:
        The hidden states ``[batch, length, H]``.

    """
    for of_loss in ("labels", "shift_labels", "advantages", "num_items_in_batch"):
        kwargs.pop(of_loss, None)
    hidden: Tensor = model.base_model(*args, **_of_backbone(kwargs)).last_hidden_state
    with whole_head(model.get_output_embeddings()) as (weight, bias):
        read(hidden, weight, bias)
    return hidden


def _of_backbone(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The backbone's share of a forward's arguments; nothing is cached."""
    of_logits = ("return_dict", "logits_to_keep", "skip_logits")
    return {n: value for n, value in kwargs.items() if n not in of_logits} | {"use_cache": False}
