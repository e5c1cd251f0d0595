"""The mathematics of one block of logits, in place: statistics out, then its gradient in.

Rows are tokens, columns the vocabulary. With m the row maximum, s = z - m, S = sum exp(s),
p = exp(s) / S:

    log p_y = s_y - log S        H = log S - (sum exp(s) s) / S        mean log p = mean(s) - log S

and for upstream gradients a, b, c, d of log p_y, H, mean log p and sum q log p (q fixed)

    dL/dz = a e_y + c / V + d q - p * [(a + c + d) + b (log p + H)]

from d log p_y/dz = e_y - p,  dH/dz = -p (log p + H),  d mean/dz = 1/V - p,  d tempered/dz = q - p.
To a base distribution b, with upstream gradient f: d KL(b || p)/dz = p - b, and
d KL(p || b)/dz = p (log p - log b - KL). On the k tokens K of the support, with r = p / p(K):
d H_K/dz = -r (log r + H_K), and 0 elsewhere.
Subtracting the maximum first keeps H exact to rounding for peaked rows; nothing here exceeds the
block, and a caller who passes blocks that fit the cache pays each memory pass at cache speed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .statistics import StatisticsRequest

# Columns per tile when looking for the row maximum and the top k. The k largest entries of a row
# lie in the k tiles with the largest maxima, so one vectorised pass serves the maximum, argmax and
# any top k.
_TILE = 128


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of the rows of a block, ``[R]``; ``log_sum`` is log S and ``maximum`` is m.

    ``support`` ``[R, k]`` are the columns of the k largest logits where they are needed.
    """

    log_prob: Tensor
    entropy: Tensor
    top_k_mass: Tensor
    is_top1: Tensor
    mean_log_prob: Tensor | None
    tempered_log_prob: Tensor | None
    support_entropy: Tensor | None
    base_kl: Tensor | None
    log_sum: Tensor
    maximum: Tensor
    support: Tensor | None


@dataclass(frozen=True)
class BaseFew:
    """The base model at the rows of a block by its k most likely tokens: columns and log b."""

    columns: Tensor  # [R, k]
    log_probs: Tensor  # [R, k]

    def rest(self) -> Tensor:
        """``[R, 1]`` probability of every other token."""
        return (1.0 - self.log_probs.exp().sum(-1, keepdim=True)).clamp_(min=0.0)


def rest_of(log_p: Tensor) -> Tensor:
    """``[R, 1]`` probability outside the tokens whose log p is given, kept above rounding."""
    rest = 1.0 - log_p.exp().sum(-1, keepdim=True)
    return rest.clamp_(min=torch.finfo(log_p.dtype).eps)


@dataclass(frozen=True)
class LogitTransform:
    """How raw head products become logits: ``cap * tanh(scale * x / cap) / temperature``."""

    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Whether raw products already are the logits."""
        return self.softcap is None and self.logit_scale == 1.0 and self.temperature == 1.0

    def apply_(self, raw: Tensor) -> None:
        """Turn raw products into logits, in place."""
        if self.softcap is None:
            if not self.is_identity:
                raw.mul_(self.logit_scale / self.temperature)
            return
        raw.mul_(self.logit_scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def chain_(self, gradient: Tensor, logits: Tensor | None) -> None:
        """Turn dL/dlogits into dL/draw, in place; a soft cap needs, and spoils, ``logits``."""
        if self.softcap is not None:
            assert logits is not None
            # tanh = logits * temperature / cap, and its derivative is 1 - tanh^2.
            logits.mul_(self.temperature / self.softcap).square_().neg_().add_(1.0)
            gradient.mul_(logits)
        if self.logit_scale != self.temperature:
            gradient.mul_(self.logit_scale / self.temperature)


def shift_and_fold(
    logits: Tensor,
    labels: Tensor,
    request: StatisticsRequest,
    scratch: Tensor,
    base: Tensor | None = None,
    few: BaseFew | None = None,
) -> BlockStatistics:
    """Subtract each row's maximum from ``logits`` in place and return the statistics of its rows.

    Args:
        logits: ``[R, V]`` final logits, fp32 or fp64; holds s = z - m afterwards.
        labels: ``[R]`` int64 in [0, V).
        request: what to compute.
        scratch: ``[R, V]`` same dtype, overwritten.
        base: ``[R, V]`` final logits of the base model; holds what `logit_gradient_` needs
            afterwards: b for the forward KL, log b - log p for the reverse one.
        few: the base model by its most likely tokens instead.

    """
    most = max(request.top_k, request.support_k or 0)
    largest, columns, first_argmax = _top_candidates(logits, most)
    candidates = largest[:, : request.top_k]
    maximum = candidates[:, 0]
    logits.sub_(maximum.unsqueeze(1))
    torch.exp(logits, out=scratch)
    total = scratch.sum(-1)
    log_sum = total.log()
    top_k_mass = (candidates - maximum.unsqueeze(1)).exp().sum(-1).div_(total).clamp_(max=1.0)
    # One pass over both, where exp * s followed by a sum would write and read a third buffer.
    entropy = (log_sum - torch.linalg.vecdot(scratch, logits) / total).clamp_(min=0.0)
    tempered = None
    if request.gem_beta is not None:
        torch.mul(logits, 1.0 / request.gem_beta, out=scratch).exp_()
        tempered = torch.linalg.vecdot(scratch, logits) / scratch.sum(-1) - log_sum
    base_kl = None
    if base is not None:
        base.sub_(base.logsumexp(-1, keepdim=True))
        torch.sub(base, logits, out=scratch).add_(log_sum.unsqueeze(1))  # log b - log p
        if request.base_kl == "forward":
            base_kl = torch.linalg.vecdot(base.exp_(), scratch)
        else:
            base.copy_(scratch)
            torch.sub(logits, log_sum.unsqueeze(1), out=scratch).exp_()
            base_kl = -torch.linalg.vecdot(scratch, base)
    if few is not None:
        log_p = logits.gather(1, few.columns) - log_sum.unsqueeze(1)
        rest = few.rest()
        others = torch.xlogy(rest, rest / rest_of(log_p)).squeeze(1)
        base_kl = torch.linalg.vecdot(few.log_probs.exp(), few.log_probs - log_p) + others
    support_entropy, support = None, None
    if request.support_k is not None:
        support = columns[:, : request.support_k]
        within = largest[:, : request.support_k].log_softmax(-1)
        support_entropy = -torch.linalg.vecdot(within.exp(), within)
    return BlockStatistics(
        log_prob=logits.gather(1, labels.unsqueeze(1)).squeeze(1) - log_sum,
        entropy=entropy,
        top_k_mass=top_k_mass,
        is_top1=first_argmax == labels,
        mean_log_prob=logits.mean(-1) - log_sum if request.mean_log_prob else None,
        tempered_log_prob=tempered,
        support_entropy=support_entropy,
        base_kl=base_kl,
        log_sum=log_sum,
        maximum=maximum,
        support=support,
    )


@dataclass(frozen=True)
class Upstream:
    """Gradients of the objective by statistic, ``[R]`` or None where there is none."""

    log_prob: Tensor | None
    entropy: Tensor | None
    mean_log_prob: Tensor | None
    tempered_log_prob: Tensor | None
    support_entropy: Tensor | None
    base_kl: Tensor | None


Record = TypeVar("Record", BlockStatistics, Upstream)


def rows_of(record: Record, span: slice) -> Record:
    """A slice of the rows of every field."""
    cut: dict[str, Any] = {
        f.name: None if (value := getattr(record, f.name)) is None else value[span]
        for f in fields(record)
    }
    return replace(record, **cut)


def concatenate(records: list[Record]) -> Record:
    """Consecutive blocks of rows as one."""
    if len(records) == 1:
        return records[0]
    columns = {f.name: [getattr(r, f.name) for r in records] for f in fields(records[0])}
    joined: dict[str, Any] = {
        name: None if values[0] is None else torch.cat(values) for name, values in columns.items()
    }
    return replace(records[0], **joined)


def logit_gradient_(
    shifted: Tensor,
    labels: Tensor,
    statistics: BlockStatistics,
    upstream: Upstream,
    request: StatisticsRequest,
    transform: LogitTransform,
    scratch: Tensor,
    base: Tensor | None = None,
    few: BaseFew | None = None,
) -> None:
    """Replace ``shifted`` (what `shift_and_fold` left) by dL/d(raw products), in place.

    Args:
        shifted: ``[R, V]`` s = z - m; holds the gradient afterwards.
        labels: ``[R]`` int64.
        statistics: of these rows.
        upstream: dL/dstatistic of these rows.
        request: the same as in `shift_and_fold`.
        transform: the head's; its derivative is applied last.
        scratch: ``[R, V]``, overwritten.
        base: ``[R, V]``, what `shift_and_fold` left in it.
        few: the same as there.

    """
    forward_kl = reverse_kl = of_few = None
    if few is not None and upstream.base_kl is not None:
        # d KL/dz_j = p_j - b_j inside, p_j (1 - b_rest / p_rest) outside.
        log_p = shifted.gather(1, few.columns) - statistics.log_sum.unsqueeze(1)
        share = few.rest() / rest_of(log_p)
        of_few = log_p.exp().mul_(share).sub_(few.log_probs.exp())
        of_few *= upstream.base_kl.unsqueeze(1)
        upstream = replace(upstream, base_kl=upstream.base_kl * (1.0 - share.squeeze(1)))
    if upstream.base_kl is not None:
        forward_kl = -upstream.base_kl if request.base_kl == "forward" else None
        reverse_kl = upstream.base_kl if request.base_kl == "reverse" else None
    within = None
    if upstream.support_entropy is not None:
        assert statistics.support is not None and statistics.support_entropy is not None
        log_r = shifted.gather(1, statistics.support).log_softmax(-1)
        within = log_r.exp() * (log_r + statistics.support_entropy.unsqueeze(1))
        within *= -upstream.support_entropy.unsqueeze(1)
    present = [
        g
        for g in (
            upstream.log_prob,
            upstream.mean_log_prob,
            upstream.tempered_log_prob,
            forward_kl,
        )
        if g is not None
    ]
    on_p = sum(present[1:], present[0]) if present else torch.zeros_like(statistics.log_sum)
    # The soft cap's derivative needs the logits after `shifted` has become the gradient.
    logits = shifted + statistics.maximum.unsqueeze(1) if transform.softcap is not None else None

    if upstream.entropy is None and upstream.tempered_log_prob is None and reverse_kl is None:
        shifted.exp_().mul_((-on_p * (-statistics.log_sum).exp()).unsqueeze(1))
    else:
        torch.sub(shifted, statistics.log_sum.unsqueeze(1), out=scratch)
        if upstream.tempered_log_prob is not None:
            assert request.gem_beta is not None
            shifted.mul_(1.0 / request.gem_beta).exp_()
            q_factor = upstream.tempered_log_prob / shifted.sum(-1)
            shifted.mul_(q_factor.unsqueeze(1))
        else:
            shifted.zero_()
        # scratch is log p. Without entropy and reverse KL the bracket is the row constant `on_p`.
        if upstream.entropy is None and reverse_kl is None:
            shifted.addcmul_(scratch.exp_(), -on_p.unsqueeze(1))
        else:
            bracket = on_p.unsqueeze(1)
            if upstream.entropy is not None:
                bracket = (
                    (scratch + statistics.entropy.unsqueeze(1))
                    .mul_(upstream.entropy.unsqueeze(1))
                    .add_(bracket)
                )
            if reverse_kl is not None:
                assert base is not None and statistics.base_kl is not None
                bracket = torch.addcmul(
                    bracket, base + statistics.base_kl.unsqueeze(1), reverse_kl.unsqueeze(1)
                )
            shifted.addcmul_(scratch.exp_(), bracket, value=-1.0)
    if of_few is not None:
        assert few is not None
        shifted.scatter_add_(1, few.columns, of_few)
    elif forward_kl is not None:
        assert base is not None
        shifted.addcmul_(base, forward_kl.unsqueeze(1))
    if within is not None:
        assert statistics.support is not None
        shifted.scatter_add_(1, statistics.support, within)
    if upstream.mean_log_prob is not None:
        shifted.add_(upstream.mean_log_prob.div(shifted.shape[1]).unsqueeze(1))
    if upstream.log_prob is not None:
        shifted.scatter_add_(1, labels.unsqueeze(1), upstream.log_prob.unsqueeze(1))
    transform.chain_(shifted, logits)


def _top_candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest values of each row, descending, their columns, and the first argmax ``[R]``."""
    rows, vocabulary = logits.shape
    whole = vocabulary // _TILE * _TILE
    tiles = whole // _TILE
    if tiles <= count:
        return *logits.topk(count, dim=-1), logits.argmax(-1)
    tiled = logits[:, :whole].unflatten(1, (tiles, _TILE))
    tile_maxima = tiled.amax(-1)
    chosen = tile_maxima.topk(count, dim=-1).indices
    found = tiled.gather(1, chosen.unsqueeze(-1).expand(rows, count, _TILE)).flatten(1)
    tail = logits[:, whole:]
    values, places = torch.cat([found, tail], dim=1).topk(count, dim=-1)
    tile = chosen.gather(1, (places // _TILE).clamp(max=count - 1))
    in_tail = places >= count * _TILE
    columns = torch.where(in_tail, places - count * _TILE + whole, tile * _TILE + places % _TILE)
    first_tile = tile_maxima.argmax(-1)
    in_tile = tiled[torch.arange(rows, device=logits.device), first_tile].argmax(-1)
    first_argmax = first_tile * _TILE + in_tile
    if whole < vocabulary:
        tail_first = tail.amax(-1) > tile_maxima.amax(-1)
        first_argmax = torch.where(tail_first, whole + tail.argmax(-1), first_argmax)
    return values, columns, first_argmax
