"""A block of logits, in place: what every statistic is made of, and dL/dz out of their terms.

Rows are tokens, columns the vocabulary. With m the row maximum, s = z - m and S = sum exp(s),

    p = exp(s) / S        log p = s - log S

Statistics (``statistics.py``) read a `Block` (on GPUs its likeness of ``kernel_block.py``), and
write their gradients as terms of

    dL/dz = p * (r + f(log p)) + g(s) + t        r [R]; f, g and t [R, V], t often a few columns

which `LogitGradient` sums where the logits were. Subtracting the maximum first keeps entropy exact
to rounding for peaked rows; nothing here exceeds the block, and a caller who passes blocks that fit
the cache pays each memory pass at cache speed. Knows no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .inputs import ReferenceTopK, check_positive

# Columns per tile when looking for the row maximum and the top k. The k largest entries of a row
# lie in the k tiles with the largest maxima, so one vectorised pass serves the maximum, argmax and
# any top k.
_TILE = 128


@dataclass(frozen=True)
class LogitTransform:
    """How raw head products become logits: ``cap * tanh(scale * x / cap) / temperature``.

    Raises:
        ValueError: a temperature or cap that is not positive, or a scale of 0 or NaN.

    """

    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if self.softcap is not None:
            check_positive("softcap", self.softcap)
        if not math.isfinite(self.logit_scale) or self.logit_scale == 0:
            raise ValueError(
                f"logit_scale is {self.logit_scale!r}; it must be a finite number other than 0"
            )

    def logits(self, raw: Tensor) -> Tensor:
        """The readable form of `apply_`, differentiable."""
        z = raw * self.logit_scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z / self.temperature

    @property
    def factors(self) -> tuple[float, float | None]:
        """(inner, outer): logits are ``outer * tanh(inner * x)``; without a cap ``inner * x``."""
        if self.softcap is None:
            return self.logit_scale / self.temperature, None
        return self.logit_scale / self.softcap, self.softcap / self.temperature

    def slope(self, raw: Tensor) -> Tensor:
        """Its derivative at raw products."""
        inner, outer = self.factors
        if outer is None:
            return torch.full_like(raw, inner)
        return (1.0 - torch.tanh(raw * inner).square()).mul_(inner * outer)

    def apply_(self, raw: Tensor) -> None:
        """Turn raw products into logits, in place."""
        inner, outer = self.factors
        if outer is not None:
            raw.mul_(inner).tanh_().mul_(outer)
        elif inner != 1.0:
            raw.mul_(inner)

    def chain_(self, gradient: Tensor, logits: Tensor | None) -> None:
        """Turn dL/dlogits into dL/draw, in place; a soft cap needs, and spoils, ``logits``."""
        if self.softcap is not None:
            assert logits is not None
            # tanh = logits * temperature / cap, and its derivative is 1 - tanh^2.
            logits.mul_(self.temperature / self.softcap).square_().neg_().add_(1.0)
            gradient.mul_(logits)
        if self.logit_scale != self.temperature:
            gradient.mul_(self.logit_scale / self.temperature)


@dataclass(frozen=True)
class RowSums:
    """What a statistic needs of a row beside what all share; ``kernel_block.py`` reads it."""

    average: bool = False  # `Block.average_shifted`
    power: float | None = None  # of `Block.power_total` and `Block.power_mean`


# What the GPU kernels write and read for each row of logits, by its place.


class Sum(IntEnum):
    """Rows of the matrix that `fold` returns; s = z - maximum."""

    MAXIMUM = 0
    TOTAL = 1  # sum exp s
    MEAN_SHIFTED = 2  # sum p s
    SECOND = 3  # the second largest s
    AVERAGE = 4  # of s over the vocabulary
    POWER_TOTAL = 5  # sum exp(r s)
    POWER_MEAN = 6  # sum exp(r s) s by it
    BASE_MAXIMUM = 7  # of the reference's logits
    BASE_TOTAL = 8
    KL = 9


class Term(IntEnum):
    """Rows of the matrix that `write_gradient` takes: what dL/dz is multiplied from."""

    P = 0
    P_LOG_P = 1  # p (log p + offset)
    OFFSET = 2
    POWER = 3  # exp(r s)
    ALL = 4
    BASE = 5  # the reference's probability
    LABEL = 6


@dataclass
class Block:
    """Rows of logits that are at hand, and what all statistics share."""

    shifted: Tensor  # [R, V] s = z - m, fp32 or fp64; becomes the gradient in the end
    scratch: Tensor  # [R, V] free for a statistic to overwrite while it is computed
    labels: Tensor  # [R] int64 in [0, V)
    maximum: Tensor  # [R] m
    total: Tensor  # [R] S
    log_sum: Tensor  # [R] log S
    mean_shifted: Tensor  # [R] sum_v p_v s_v
    likeliest: Tensor  # [R, k] the k largest s, descending; k what the request asks for
    likeliest_columns: Tensor  # [R, k] their tokens
    first_argmax: Tensor  # [R] the first of the most likely tokens
    # [R, V] final logits of the reference model, or None; may be written to
    reference_logits: Tensor | None
    # The reference model by its most likely tokens instead, or None
    reference_top_k: ReferenceTopK | None

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: Tensor,
        reference_logits: Tensor | None = None,
        reference_top_k: ReferenceTopK | None = None,
        *,
        scratch: Tensor,
        likeliest: int,
    ) -> Block:
        """Shift final logits ``[R, V]`` in place and sum what all statistics share."""
        largest, columns, first_argmax = _top_candidates(logits, likeliest)
        maximum = largest[:, 0]
        logits.sub_(maximum.unsqueeze(1))
        total = torch.exp(logits, out=scratch).sum(-1)
        return cls(
            shifted=logits,
            scratch=scratch,
            labels=labels,
            maximum=maximum,
            total=total,
            log_sum=total.log(),
            mean_shifted=scratch.mul_(logits).sum(-1).div_(total),
            likeliest=largest - maximum.unsqueeze(1),
            likeliest_columns=columns,
            first_argmax=first_argmax,
            reference_logits=reference_logits,
            reference_top_k=reference_top_k,
        )

    def gradient(self) -> LogitGradient:
        """The terms of dL/dz that statistics add to."""
        return LogitGradient(self)

    def log_p_of(self, columns: Tensor) -> Tensor:
        """``[R, k]`` log-probabilities of the tokens ``columns`` ``[R, k]``."""
        return self.shifted.gather(1, columns) - self.log_sum.unsqueeze(1)

    def average_shifted(self) -> Tensor:
        """``[R]`` mean of s over the vocabulary."""
        return self.shifted.mean(-1)

    def power_total(self, power: float) -> Tensor:
        """``[R]`` sum of exp(power * s)."""
        return torch.mul(self.shifted, power, out=self.scratch).exp_().sum(-1)

    def power_mean(self, power: float) -> Tensor:
        """``[R]`` mean of s, weighted by exp(power * s)."""
        total = self.power_total(power)
        return self.scratch.mul_(self.shifted).sum(-1) / total

    def reference_log_prob(self) -> Tensor:
        """``[R]`` log-probability of the label under the reference model whose logits are here."""
        assert self.reference_logits is not None
        of_label = self.reference_logits.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        return of_label - self.reference_logits.logsumexp(-1)

    def reference_kl(self) -> Tensor:
        """``[R]`` KL(b || p), b the reference model, whose probabilities replace its logits."""
        assert self.reference_logits is not None
        log_b = self.reference_logits.sub_(self.reference_logits.logsumexp(-1, keepdim=True))
        ratio = torch.sub(log_b, self.shifted, out=self.scratch).add_(self.log_sum.unsqueeze(1))
        b = log_b.exp_()  # stays in reference_logits for the gradient
        return torch.mul(b, ratio, out=ratio).sum(-1)


class LogitGradient:
    """dL/dz of a block, as the terms that its statistics add; `write_` sums them in place."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._rows: Tensor | None = None
        self._times_p: list[Callable[[Tensor], Tensor]] = []
        self._of_shifted: list[Callable[[Tensor], Tensor]] = []
        self._last: list[Callable[[Tensor], object]] = []

    def add_p(self, rows: Tensor) -> None:
        """``p_v * rows``; rows ``[R]``."""
        self._rows = rows if self._rows is None else self._rows + rows

    def add_p_times(self, function: Callable[[Tensor], Tensor]) -> None:
        """``p_v * function(log p)_v``; the function returns a new ``[R, V]``."""
        self._times_p.append(function)

    def add_p_log_p(self, offset: Tensor, rows: Tensor) -> None:
        """``p_v * (log p_v + offset) * rows``; offset and rows ``[R]``."""
        factor = rows.unsqueeze(1)
        self.add_p_times(lambda log_p: (log_p + offset.unsqueeze(1)).mul_(factor))

    def add_power(self, power: float, rows: Tensor) -> None:
        """``q_v * rows``, q in proportion to exp(power * s); rows ``[R]``."""

        def q_(shifted: Tensor) -> Tensor:
            q = shifted.mul_(power).exp_()
            return q.mul_((rows / q.sum(-1)).unsqueeze(1))

        self.add_of_shifted(q_)

    def add_reference(self, rows: Tensor) -> None:
        """``b_v * rows``, b the reference model whose logits are here; rows ``[R]``."""
        assert self.block.reference_logits is not None
        self.add_dense(self.block.reference_logits, rows)

    def add_label(self, rows: Tensor) -> None:
        """``rows`` ``[R]`` at the labels."""
        self.add_columns(self.block.labels.unsqueeze(1), rows.unsqueeze(1))

    def add_of_shifted(self, function_: Callable[[Tensor], Tensor]) -> None:
        """``function_(s)_v``; the function may work in place, and returns ``[R, V]``."""
        self._of_shifted.append(function_)

    def add_dense(self, values: Tensor, rows: Tensor) -> None:
        """``values_v * rows``; values ``[R, V]``, rows ``[R]``."""
        self._last.append(lambda gradient: gradient.addcmul_(values, rows.unsqueeze(1)))

    def add_average(self, rows: Tensor) -> None:
        """``rows / V`` for each token; rows ``[R]``."""
        each = (rows / self.block.shifted.shape[1]).unsqueeze(1)
        self._last.append(lambda gradient: gradient.add_(each))

    def add_columns(self, columns: Tensor, values: Tensor) -> None:
        """``values`` ``[R, k]`` at the tokens ``columns`` ``[R, k]``."""
        self._last.append(lambda gradient: gradient.scatter_add_(1, columns, values))

    def write_(self, transform: LogitTransform) -> Tensor:
        """Replace the block's s by dL/d(raw products), and return that."""
        block, gradient = self.block, self.block.shifted
        rows = torch.zeros_like(block.log_sum) if self._rows is None else self._rows
        # The soft cap's derivative needs the logits after they have become the gradient.
        capped = transform.softcap is not None
        logits = gradient + block.maximum.unsqueeze(1) if capped else None
        if not self._times_p and not self._of_shifted:
            gradient.exp_().mul_((rows * (-block.log_sum).exp()).unsqueeze(1))
        else:
            log_p = torch.sub(gradient, block.log_sum.unsqueeze(1), out=block.scratch)
            factor = rows.unsqueeze(1)
            if self._times_p:
                first, *others = (function(log_p) for function in self._times_p)
                for other in others:
                    first += other
                factor = first.add_(factor)
            p = log_p.exp_()
            if self._of_shifted:
                *earlier, last = self._of_shifted
                copies = [function_(gradient.clone()) for function_ in earlier]
                values = last(gradient)
                if values is not gradient:
                    gradient.copy_(values)
                for copy in copies:
                    gradient.add_(copy)
                gradient.addcmul_(p, factor)
            else:
                torch.mul(p, factor, out=gradient)
        # The label's share, the largest number of most rows, is declared first and added last.
        for add_ in reversed(self._last):
            add_(gradient)
        transform.chain_(gradient, logits)
        return gradient


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
    inside = tiled.gather(1, chosen.unsqueeze(-1).expand(rows, count, _TILE)).flatten(1)
    tail = logits[:, whole:]
    values, positions = torch.cat([inside, tail], dim=1).topk(count, dim=-1)
    tile = chosen.gather(1, (positions // _TILE).clamp(max=count - 1))
    in_tail = positions >= count * _TILE
    columns = torch.where(
        in_tail, positions - count * _TILE + whole, tile * _TILE + positions % _TILE
    )
    first_tile = tile_maxima.argmax(-1)
    in_tile = tiled[torch.arange(rows, device=logits.device), first_tile].argmax(-1)
    first_argmax = first_tile * _TILE + in_tile
    if whole < vocabulary:
        tail_first = tail.amax(-1) > tile_maxima.amax(-1)
        first_argmax = torch.where(tail_first, whole + tail.argmax(-1), first_argmax)
    return values, columns, first_argmax
