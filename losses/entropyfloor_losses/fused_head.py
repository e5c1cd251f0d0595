"""Token statistics and losses from (hidden states, head weight), never holding ``[N, V]`` logits.

`linear_loss` trains. Logits exist one chunk of tokens at a time; while a chunk is there, its
statistics become leaves, the loss is evaluated on them, autograd gives dL/dstatistic, and the
formula in ``logit_blocks.py`` turns the chunk's logits into dL/dz in place. Three matrix products
(z = h W^T, dh = dz W, dW += dz^T h), the floor for this computation; two when the head or the
hidden states are frozen, one when both are. Backward only scales what is already there.

`linear_token_statistics` is the differentiable variant, for callers who need per-token upstream
gradients: it keeps one number per token and recomputes the chunks in backward (four products).

Precision: products accumulate in fp32 inside the matrix product; softmax, log-sum-exp, entropy
and the gradient of the weight across chunks are fp32 (fp64 for fp64 input). On CUDA, 16-bit
products are returned in fp32; on a CPU they are rounded once to the input's dtype, as the model's
own forward does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base_anchor import BaseHead, BaseTopK
from .head_call import HeadCall
from .head_gradients import LinearLoss, LinearTokenStatistics, TokenLoss, no_autocast
from .logit_blocks import LogitTransform
from .statistics import StatisticsRequest, TokenStatistics


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss: TokenLoss,
    *,
    bias: Tensor | None = None,
    num_items: int | Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    base: BaseHead | BaseTopK | None = None,
    advantages: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, TokenStatistics]:
    """Loss of a language-model head, its gradient computed chunk by chunk during the forward pass.

    Labels are not shifted: ``hidden[i]`` predicts ``labels[i]``.

    Args:
        hidden: ``[..., H]`` last hidden states; fp64, fp32, bf16 or fp16.
        weight: ``[V, H]`` head weight, the dtype of ``hidden`` (any floating one under autocast).
        labels: ``[...]`` int64 in [0, V), or -100 to ignore; ignored tokens cost nothing.
        loss: an object of this package, or any callable that maps `TokenStatistics` of n tokens to
            ``[n]`` values, token by token (a token's value may depend on that token only). Its
            attribute ``request``, if there is one, says which statistics it needs.
        bias: ``[V]`` or None; -inf entries mask the vocabulary.
        num_items: what the sum is divided by: the scored tokens of the *global* batch, as
            transformers' ``num_items_in_batch``. Default: this call's scored tokens.
        temperature: > 0, divides the logits.
        softcap: ``c * tanh(logits / c)``, or None.
        logit_scale: factor on the raw products, before the cap.
        base: hidden states and head of a base model at the same positions, for losses that ask for
            ``base_kl``: one more matrix product and one more chunk of logits, no gradient. Or its
            most likely tokens, for the forward KL alone: no product.
        advantages: ``[...]``, the labels' shape, for losses that weight tokens by them.
        chunk_size: tokens per chunk; default: even chunks of at most 320 MiB of logits (512 MiB on
            accelerators).

    Returns:
        (loss, statistics): a scalar (fp32; fp64 for fp64 input) that carries gradients to hidden,
        weight and bias, and detached `TokenStatistics` in the labels' shape. With no scored token
        the loss is 0 and the graph is alive. Backward may run once: gradients are handed over,
        not copied.

    Raises:
        ValueError: shapes or dtypes that do not match, labels out of range, k > V, NaN logits.

    """
    request = _request_of(loss)
    call = HeadCall.prepare(
        hidden,
        weight,
        labels,
        bias,
        request,
        LogitTransform(logit_scale, softcap, temperature),
        base,
        advantages,
        chunk_size,
    )
    count = call.labels.numel() if num_items is None else num_items
    with no_autocast(hidden):
        objective, *flat = LinearLoss.apply(
            call.hidden, weight, bias, call.labels, loss, call, count
        )
    return objective, call.unflatten(flat)


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    top_k: int = 2,
    request: StatisticsRequest | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    base: BaseHead | BaseTopK | None = None,
    advantages: Tensor | None = None,
    chunk_size: int | None = None,
) -> TokenStatistics:
    """`token_statistics` of ``hidden @ weight.T + bias`` without logits, differentiable per token.

    Arguments are `linear_loss`'s; ``request`` (or ``top_k``) says what to compute. Any upstream
    gradients, uniform or not, are honoured; backward recomputes the chunks.
    """
    request = request or StatisticsRequest(top_k=top_k)
    call = HeadCall.prepare(
        hidden,
        weight,
        labels,
        bias,
        request,
        LogitTransform(logit_scale, softcap, temperature),
        base,
        advantages,
        chunk_size,
    )
    return call.unflatten(LinearTokenStatistics.apply(call.hidden, weight, bias, call.labels, call))


def _request_of(loss: Any) -> StatisticsRequest:
    request = getattr(loss, "request", None) or StatisticsRequest()
    if not isinstance(request, StatisticsRequest):
        raise ValueError(
            f"{type(loss).__name__}.request is {request!r}; it must be a StatisticsRequest"
        )
    return request
