"""Two passes over a chunk of logits on a GPU: its sums out, then the gradient in.

    fold       reads each product once; a row's sums, whatever is asked for
    gradient   reads it once more and writes dL/dproduct, in the dtype of the products, where it was

A program has a row. Its lanes run along the vocabulary, each with a peak and sums of its own

    total = sum exp(z - peak)      moment = sum exp(z - peak) (z - peak)

which are scaled when the peak rises and put together at the row's end: one exponential for each
element and sum. The readable form of all of it is `blocks.Block`, with which ``kernel_block.py``
compares on each device before it trusts. Needs Triton.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import Sum

LOWEST = tl.constexpr(-1e30)  # inputs.MASKED_LOGIT: finite, so that differences are
# 4 elements to a thread: 24 to 69 registers on sm_80 and sm_90, and none spills. With 8, those of
# GEM's fold do on sm_80, and half as many programs share a multiprocessor.
BLOCK, WARPS = 1024, 8


@triton.jit
def _tanh(u):
    return 1.0 - 2.0 / (tl.exp(2.0 * u) + 1.0)


@triton.jit
def _logits(raw, inner, outer, CAPPED: tl.constexpr):
    """Final logits of products; `LogitTransform` with ``inner`` and ``outer`` factors."""
    z = raw * inner
    if CAPPED:
        z = _tanh(z) * outer
    return z


@triton.jit
def _add(total, moment, step, rises, rate):
    """Add a number to a lane's sums of exp(rate s) and exp(rate s) s; ``step`` is z - peak."""
    # abs, not a choice: of a NaN both sums become NaN.
    decay = tl.exp(-rate * tl.abs(step))
    moment = tl.where(rises, decay * (moment - step * total), moment + decay * step)
    total = tl.where(rises, decay * total + 1.0, total + decay)
    return total, moment


@triton.jit
def fold_kernel(
    products,
    base,
    sums,
    first_argmax,
    vocabulary,
    stride,
    base_stride,
    sums_stride,
    inner,
    outer,
    power,
    CAPPED: tl.constexpr,
    SECOND: tl.constexpr,
    AVERAGE: tl.constexpr,
    POWER: tl.constexpr,
    BASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row's sums."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    zeros = tl.zeros([BLOCK], tl.float32)
    peak = zeros + LOWEST
    second = peak
    column = tl.zeros([BLOCK], tl.int32)
    total = zeros
    moment = zeros
    average = zeros
    power_total = zeros
    power_moment = zeros
    base_peak = peak
    base_total = zeros
    gap = zeros
    for start in range(0, vocabulary, BLOCK):
        at = start + lanes
        inside = at < vocabulary
        raw = tl.load(products + row * stride + at, mask=inside, other=0.0)
        logit = _logits(raw, inner, outer, CAPPED)
        if AVERAGE:
            average += tl.where(inside, logit, 0.0)
        z = tl.where(inside, logit, LOWEST)
        step = z - peak
        rises = step > 0.0
        total, moment = _add(total, moment, step, rises, 1.0)
        if POWER:
            power_total, power_moment = _add(power_total, power_moment, step, rises, power)
        if SECOND:
            second = tl.maximum(second, tl.minimum(peak, z))
        column = tl.where(rises, at, column)
        peak = tl.where(rises, z, peak)
        if BASE:
            of_base = tl.load(base + row * base_stride + at, mask=inside, other=0.0)
            u = tl.where(inside, _logits(of_base, inner, outer, CAPPED), LOWEST)
            step = u - base_peak
            rises = step > 0.0
            decay = tl.exp(-tl.abs(step))
            gap = tl.where(rises, decay * gap + (u - z), gap + decay * (u - z))
            base_total = tl.where(rises, decay * base_total + 1.0, base_total + decay)
            base_peak = tl.where(rises, u, base_peak)

    maximum = tl.max(peak, 0)
    shift = peak - maximum
    weight = tl.exp(shift)
    of_row = tl.sum(weight * total, 0)
    sums += row
    tl.store(sums, maximum)
    tl.store(sums + sums_stride, of_row)
    tl.store(sums + 2 * sums_stride, tl.sum(weight * (moment + shift * total), 0) / of_row)
    argmax = tl.min(tl.where(peak == maximum, column, vocabulary), 0)
    tl.store(first_argmax + row, argmax)
    if SECOND:
        others = tl.where((peak == maximum) & (column == argmax), second, peak)
        tl.store(sums + 3 * sums_stride, tl.max(others, 0) - maximum)
    if AVERAGE:
        tl.store(sums + 4 * sums_stride, tl.sum(average, 0) / vocabulary - maximum)
    if POWER:
        weight = tl.exp(power * shift)
        of_power = tl.sum(weight * power_total, 0)
        power_moment = tl.sum(weight * (power_moment + shift * power_total), 0)
        tl.store(sums + 5 * sums_stride, of_power)
        tl.store(sums + 6 * sums_stride, power_moment / of_power)
    if BASE:
        base_maximum = tl.max(base_peak, 0)
        weight = tl.exp(base_peak - base_maximum)
        of_base_row = tl.sum(weight * base_total, 0)
        # sum b (u - z) - (log sum exp u - log sum exp z)
        apart = (base_maximum - maximum) + (tl.log(of_base_row) - tl.log(of_row))
        tl.store(sums + 7 * sums_stride, base_maximum)
        tl.store(sums + 8 * sums_stride, of_base_row)
        tl.store(sums + 9 * sums_stride, tl.sum(weight * gap, 0) / of_base_row - apart)


@triton.jit
def gradient_kernel(
    products,
    base,
    gradient,
    labels,
    sums,
    terms,
    vocabulary,
    stride,
    base_stride,
    gradient_stride,
    sums_stride,
    inner,
    outer,
    power,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    AVERAGE: tl.constexpr,
    POWER: tl.constexpr,
    BASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dL/dproduct of a row; ``gradient`` may be the memory of ``products``, row on row.

    A 16-bit row is half as long as the fp32 row whose place it takes, so what is written lies
    before what has not been read, but for the block in hand: hence the barrier.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    sums += row
    terms += row
    maximum = tl.load(sums)
    log_sum = tl.log(tl.load(sums + sums_stride))
    on_p = tl.load(terms)
    on_label = tl.load(terms + 6 * sums_stride)
    label = tl.load(labels + row)
    if ENTROPY:
        on_p_log_p = tl.load(terms + sums_stride)
        offset = tl.load(terms + 2 * sums_stride)
    if POWER:
        on_power = tl.load(terms + 3 * sums_stride)
    if AVERAGE:
        on_all = tl.load(terms + 4 * sums_stride)
    if BASE:
        on_base = tl.load(terms + 5 * sums_stride)
        base_log_sum = tl.load(sums + 7 * sums_stride) + tl.log(tl.load(sums + 8 * sums_stride))
    for start in range(0, vocabulary, BLOCK):
        at = start + lanes
        inside = at < vocabulary
        raw = tl.load(products + row * stride + at, mask=inside, other=0.0)
        shifted = _logits(raw, inner, outer, CAPPED) - maximum
        log_p = shifted - log_sum
        factor = on_p
        if ENTROPY:
            factor = on_p + on_p_log_p * (log_p + offset)
        value = tl.exp(log_p) * factor
        if POWER:
            value += on_power * tl.exp(power * shifted)
        if AVERAGE:
            value += on_all
        if BASE:
            of_base = tl.load(base + row * base_stride + at, mask=inside, other=0.0)
            value += on_base * tl.exp(_logits(of_base, inner, outer, CAPPED) - base_log_sum)
        value += tl.where(at == label, on_label, 0.0)
        value *= inner
        if CAPPED:
            tanh = _tanh(raw * inner)
            value *= outer * (1.0 - tanh * tanh)
        tl.debug_barrier()
        place = gradient + row * gradient_stride + at
        tl.store(place, value.to(gradient.dtype.element_ty), mask=inside)


def fold(
    products: Tensor,
    base: Tensor | None,
    factors: tuple[float, float | None],
    *,
    second: bool,
    average: bool,
    power: float | None,
) -> tuple[Tensor, Tensor]:
    """Sums of each row, and the first of its most likely tokens.

    Args:
        products: ``[R, V]`` fp32, what the head multiplied.
        base: ``[R, V]`` likewise of a reference model, or None.
        factors: `LogitTransform.factors`.
        second: whether the second largest logit is wanted.
        average: whether the mean logit is.
        power: r of sums of exp(r s), or None.

    Returns:
        ``[len(Sum), R]`` fp32 (rows that were not asked for are undefined), and ``[R]`` int32.

    """
    rows, vocabulary = products.shape
    sums = torch.empty(len(Sum), rows, dtype=torch.float32, device=products.device)
    first_argmax = torch.empty(rows, dtype=torch.int32, device=products.device)
    inner, outer = factors
    with torch.cuda.device_of(products):
        fold_kernel[(rows,)](
            products,
            base,
            sums,
            first_argmax,
            vocabulary,
            products.stride(0),
            0 if base is None else base.stride(0),
            rows,
            inner,
            outer or 0.0,
            power or 0.0,
            CAPPED=outer is not None,
            SECOND=second,
            AVERAGE=average,
            POWER=power is not None,
            BASE=base is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return sums, first_argmax


def write_gradient(
    products: Tensor,
    base: Tensor | None,
    factors: tuple[float, float | None],
    labels: Tensor,
    sums: Tensor,
    terms: Tensor,
    *,
    wanted: dict[str, float | bool | None],
    dtype: torch.dtype,
) -> Tensor:
    """Replace products by dL/dproduct in ``dtype``; returns the ``[R, V]`` view that holds it.

    Args:
        products: ``[R, V]`` fp32; their memory is written over.
        base: as given to `fold`.
        factors: likewise.
        labels: ``[R]`` int64.
        sums: what `fold` returned.
        terms: ``[len(Term), R]`` fp32.
        wanted: "entropy", "average" and "base", whether there are such terms, and "power".
        dtype: fp32, or one of half its size.

    """
    rows, vocabulary = products.shape
    gradient = products if dtype == products.dtype else products.view(dtype)[:, :vocabulary]
    inner, outer = factors
    power = wanted["power"]
    with torch.cuda.device_of(products):
        gradient_kernel[(rows,)](
            products,
            base if wanted["base"] else None,
            gradient,
            labels,
            sums,
            terms,
            vocabulary,
            products.stride(0),
            base.stride(0) if base is not None else 0,
            gradient.stride(0),
            rows,
            inner,
            outer or 0.0,
            power or 0.0,
            CAPPED=outer is not None,
            ENTROPY=wanted["entropy"],
            AVERAGE=wanted["average"],
            POWER=power is not None,
            BASE=wanted["base"],
            BLOCK=BLOCK,
            num_warps=WARPS,
            num_stages=1,  # the next block is not to be read ahead
        )
    return gradient
