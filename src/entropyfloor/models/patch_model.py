"""``patch_model``: a causal language model whose forward computes our loss when it gets ``labels``.

head = patch_model(model, "gem", beta=0.7)
for batch in loader:                        # input_ids, attention_mask, labels (-100: ignored)
loss = model(**batch).loss              # no logits are built
loss.backward(); optimizer.step(); optimizer.zero_grad()
head.detach()                               # the forward is the model's own again
"""

from __future__ import annotations

import functools
import types
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from entropyfloor.models.lm_head import refuse_adapter
from entropyfloor.models.loss_forward import loss_without_logits, model_output, states_and_head
from entropyfloor.models.loss_head import HEAD_ATTRIBUTE, LossHead, TokenLoss
from entropyfloor_losses import loss_by_name, needs_calibration


def patch_model(model: Any, loss: str | TokenLoss = "sed", **options: Any) -> LossHead:
    """Make ``model(..., labels=labels)`` return our loss, and no logits, in training mode.

    The loss is the sum over scored tokens by ``num_items_in_batch`` where the caller gives one (as
    ``transformers.Trainer`` does), else by this call's scored tokens. In evaluation mode a call
    with labels returns what it returned before, logits included, with our loss in place of its own;
    with ``skip_logits=True`` the loss alone.
    Calls without labels, and so generation, are untouched. Labels are shifted as the model's own
    forward shifts them; ``shift_labels`` are not. `EntropyFloorCallback` adds a floor under
    entropy, in any ``transformers.Trainer`` or in a bare loop; trl's SFTTrainer computes its loss
    outside the model, use `SEDTrainer` there.

    Args:
        model: a causal language model of transformers, or a PEFT model around one; not yet wrapped
            by DDP, FSDP or DeepSpeed. One that is patched already is patched anew.
        loss: a name (one of `entropyfloor_losses.LOSS_NAMES`), an object of `entropyfloor_losses`,
            or any callable that maps `TokenStatistics` of n tokens to ``[n]`` values token by
            token. "gift", "asft" and "psft" compare with a reference model, which
            `EntropyFloorCallback` sets; "tail" is `SEDTrainer`'s.
        **options: of a named loss: ``lam``, ``top_k``, ``tau``, ``beta``, ... With tau="auto" (the
            default of "sed") call ``head.calibrate(batches)`` before the first step;
            `EntropyFloorCallback` does.

    Returns:
        The `LossHead` that the patched forward reads its loss from; ``head.detach()`` undoes it.

    Raises:
        ValueError: an unknown loss or option, a wrapped model, one without a head of a plain weight
            matrix, or a loss that asks for more likely tokens than the vocabulary has.

    """
    chosen = choose_loss(loss, options)
    base = _base_of(model)
    _check_head(base, chosen)
    old = base.__dict__.get(HEAD_ATTRIBUTE, lambda: None)()
    if old is not None and old.model is base:
        old.detach()
    head = LossHead(base, chosen)
    before, kwargs_before = base.__dict__.get("forward"), base.__dict__.get("accepts_loss_kwargs")
    own_forward = base.forward

    def of_model(called: Any) -> Any:
        bound = getattr(own_forward, "__func__", None)
        return own_forward if bound is None else types.MethodType(bound, called)

    # Not compiled itself, but what it calls. The original signature: `generate` and `Trainer`
    # validate keyword arguments against it.
    @torch.compiler.disable(recursive=False)
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, entropyfloor_head: Any = None, **kwargs: Any) -> Any:
        if self is not base or not head.asked(entropyfloor_head, kwargs):
            return of_model(self)(*args, **kwargs)  # a copy of the model has its own forward
        if callable(entropyfloor_head):
            return states_and_head(base, entropyfloor_head, *args, **kwargs)
        if entropyfloor_head is None and kwargs.get("fused_lm_head"):
            raise ValueError(
                "the model is patched with entropyfloor's loss and trl's trainer computes its own "
                "from it; use entropyfloor.SEDTrainer in place of SFTTrainer, or head.detach()"
            )
        if needs_calibration(head.loss):
            raise ValueError(
                "the loss has tau='auto', which is measured before the first step: call "
                "head.calibrate(batches), give the trainer EntropyFloorCallback(head), or pass a "
                "number"
            )
        if not head.wants_loss_alone(entropyfloor_head, kwargs):
            return model_output(head, of_model(self), *args, **kwargs)
        return loss_without_logits(head, *args, **kwargs)

    ours = types.MethodType(forward, base)
    head._undo = (ours, before, kwargs_before)
    base.forward = ours
    # Trainer asks for this before it hands over the count; a signature without **kwargs denies it.
    base.accepts_loss_kwargs = True
    # Not the head itself: copies of the model would copy it.
    base.__dict__[HEAD_ATTRIBUTE] = weakref.ref(head)
    return head


def choose_loss(loss: str | TokenLoss, options: dict[str, Any]) -> TokenLoss:
    """The loss object of a name and its options, or what was passed, if it is one.

    Raises:
        ValueError: neither a name nor a callable, or options beside an object.

    """
    if isinstance(loss, str):
        named: TokenLoss = loss_by_name(loss, **options)
        return named
    if not callable(loss):
        raise ValueError(
            f"loss is {loss!r}; pass a name, a loss object or a callable on TokenStatistics"
        )
    if options:
        raise ValueError(
            f"loss is an object and {', '.join(options)} beside it would have no effect; put every "
            "option into the object"
        )
    return loss


def _base_of(model: Any) -> Any:
    """The transformers model that is to be patched.

    Raises:
        ValueError: it is wrapped for several processes, or is no language model of transformers.

    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise ValueError(
            f"the model is wrapped by {type(model).__name__}; patch_model(model) first, then wrap"
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not (hasattr(base, "get_output_embeddings") and hasattr(base, "base_model")):
        raise ValueError(
            f"{type(base).__name__} is no causal language model of transformers: it has no "
            "get_output_embeddings(). Call entropyfloor_losses.linear_loss(hidden, weight, labels, "
            "loss) in its forward"
        )
    return base


def _check_head(model: PreTrainedModel, loss: Any) -> None:
    lm_head = model.get_output_embeddings()
    refuse_adapter(lm_head)
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
    if request is not None and request.likeliest > vocabulary:
        raise ValueError(
            f"top_k is {request.likeliest}, more than the vocabulary of {vocabulary} tokens"
        )
