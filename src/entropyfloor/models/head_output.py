"""What a patched model returns in place of logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


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

    loss: Tensor | None = None
    logits: Tensor | None = None
    aux_loss: Tensor | None = None
    objective: Tensor | None = None
    scored: Tensor | None = None
    log_prob: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    top_k_mass: Tensor | None = None
    selected: Tensor | None = None
    reference_kl: Tensor | None = None
