"""A call of the head: checked, its ignored tokens taken out, its chunks chosen.

What of it lies on the device is read once (`_look`): on a GPU each reading waits for all work that
was queued before. Labels and advantages are refused there, before anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import LogitTransform
from .inputs import (
    ADVANTAGES_NOT_FINITE,
    IGNORE_INDEX,
    ReferenceHead,
    ReferenceTopK,
    check_advantages_shape,
    outside_labels,
    refuse_labels,
    statistics_dtype,
)
from .request import StatisticsRequest, TokenStatistics
from .sequences import Sequences, SequenceWeights

# Logits of one chunk, in bytes. At (1024, 896, 151,936) in fp32 on two cores, two chunks of 512
# tokens (297 MiB) took 1.05x the three bare products, three chunks 1.09x and five 1.29x: the
# weight's gradient, 545 MB, is read and written once per chunk. `make bench` shows it.
_CHUNK_BYTES = {"cpu": 320 * 2**20, "default": 512 * 2**20}
# On accelerators at least so many tokens: reading and writing the weight's gradient, 8 bytes for
# 2 R flops, outlasts its product below about 1000 (R flops / 4 bytes against 750 TFLOP/s / 3 TB/s).
_CHUNK_TOKENS = {"cpu": 1, "default": 2048}


@dataclass(frozen=True)
class Group:
    """Chunks that hold whole sequences together; where nothing is of sequences, one chunk."""

    spans: tuple[slice, ...]
    sequences: Sequences | None = None

    @property
    def tokens(self) -> slice:
        """Of all its chunks."""
        return slice(self.spans[0].start, self.spans[-1].stop)


@dataclass(frozen=True)
class Call:
    """A checked call; ``n`` is its number of scored tokens."""

    hidden: Tensor  # [n, H]
    labels: Tensor  # [n]
    scored: Tensor  # the caller's shape
    positions: Tensor  # [n] of the tokens among all, flat; those that move nothing come last
    request: StatisticsRequest
    transform: LogitTransform
    reference: ReferenceHead | ReferenceTopK | None  # of the scored tokens
    advantages: Tensor | None  # [n]; of whole sequences they are filled in on the way
    weigher: SequenceWeights | None  # that forms them
    compute_dtype: torch.dtype
    groups: list[Group]  # of chunks, in order
    moving: int  # tokens before this one can have a gradient
    # Inside autograd.Function.forward, needs_input_grad ignores no_grad: remember the caller's
    # mode.
    grad_enabled: bool

    @classmethod
    def of(
        cls,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
        *,
        request: StatisticsRequest,
        transform: LogitTransform,
        reference: ReferenceHead | ReferenceTopK | None,
        advantages: Tensor | SequenceWeights | None,
        chunk_size: int | None,
        zero_advantage_moves_nothing: bool = False,
    ) -> Call:
        """`linear_loss` documents the arguments and what is refused.

        Args:
            inputs: hidden states, head weight, labels and bias.
            request: statistics to compute.
            transform: of products into logits.
            reference: of a reference model, or None.
            advantages: or what forms them.
            chunk_size: tokens, or None.
            zero_advantage_moves_nothing: whether such tokens have no gradient.

        """
        hidden, weight, labels, bias = inputs
        _check_head(hidden, weight, labels, bias)
        vocabulary, device_type = weight.shape[0], hidden.device.type
        request.check(vocabulary, reference)
        if reference is not None:
            reference.check(labels, vocabulary)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be an integer >= 1")
        weigher = advantages if isinstance(advantages, SequenceWeights) else None
        given = advantages if isinstance(advantages, Tensor) else None
        if weigher is not None:
            weigher.check(request)
        scored, positions, moving = _look(labels, vocabulary, given, zero_advantage_moves_nothing)
        autocast = torch.is_autocast_enabled(device_type)
        compute_dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
        dtype = statistics_dtype(compute_dtype)
        count = len(positions)
        size = chunk_size or _chunk_tokens(vocabulary * dtype.itemsize, device_type)
        even = chunk_size is None
        values: Tensor | None = None
        if weigher is not None:
            of = Sequences.of(scored, weigher.position_ids, positions)
            groups = _whole_sequences(of, size)
            values = torch.zeros(count, dtype=dtype, device=hidden.device)
        else:
            spans = [*_spans(0, moving, size, even), *_spans(moving, count, size, even)]
            groups = [Group((span,)) for span in spans]
            if given is not None:
                values = given.detach().flatten().index_select(0, positions).to(dtype)
        return cls(
            hidden=hidden.flatten(0, -2).index_select(0, positions),
            labels=labels.flatten().index_select(0, positions),
            scored=scored,
            positions=positions,
            request=request,
            transform=transform,
            reference=None if reference is None else reference.at(positions, compute_dtype),
            advantages=values,
            weigher=weigher,
            compute_dtype=compute_dtype,
            groups=groups,
            moving=moving,
            grad_enabled=torch.is_grad_enabled(),
        )

    @property
    def chunks(self) -> list[slice]:
        """Tokens whose logits share a buffer, in order."""
        return [span for group in self.groups for span in group.spans]

    @property
    def largest_chunk(self) -> int:
        """Tokens whose logits the buffer has to hold, at least 1."""
        return max((span.stop - span.start for span in self.chunks), default=1)

    def unflatten(self, values: Any) -> TokenStatistics:
        """Statistics of the scored tokens, put back into the labels' shape with zeros elsewhere."""

        def spread(of_scored: Tensor) -> Tensor:
            zeros = of_scored.new_zeros(self.scored.numel())
            return zeros.index_copy(0, self.positions, of_scored).view(self.scored.shape)

        by_name = {n: spread(v) for n, v in zip(self.request.options, values, strict=True)}
        advantage = None if self.advantages is None else spread(self.advantages)
        return TokenStatistics(scored=self.scored, advantage=advantage, **by_name)


def _check_head(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    """Refuse shapes and dtypes that do not match."""
    if weight.ndim != 2 or hidden.ndim < 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "they must be [..., H] and [V, H]"
        )
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and labels {tuple(labels.shape)}; "
            "labels must have hidden's leading dimensions (this function does not shift them)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},)")
    if torch.is_autocast_enabled(hidden.device.type):
        return
    if hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; cast one of them, or run "
            "under torch.autocast"
        )
    if not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden is {hidden.dtype}; it must be a floating dtype")


def _look(
    labels: Tensor, vocabulary: int, advantages: Tensor | None, zero_moves_nothing: bool
) -> tuple[Tensor, Tensor, int]:
    """What the device knows, in one reading.

    Returns:
        scored: bool, the labels' shape.
        positions: ``[n]`` of the scored tokens; those that move nothing come last.
        moving: how many of them come before those.

    """
    outside = outside_labels(labels, vocabulary)
    scored = labels != IGNORE_INDEX
    still = torch.zeros_like(scored)
    numbers = [scored.sum(), outside.sum()]
    if advantages is not None:
        check_advantages_shape(advantages, labels)
        if zero_moves_nothing:
            still = (advantages == 0) & scored
        numbers += [(~torch.isfinite(advantages)).sum(), still.sum()]
    count, wrong, *of_advantages = torch.stack(numbers).tolist()
    if wrong:
        refuse_labels(labels[outside], vocabulary)
    not_finite, at_rest = of_advantages or (0, 0)
    if not_finite:
        raise ValueError(ADVANTAGES_NOT_FINITE)
    # Sorting needs no count, as `nonzero` does: the order is that of the tokens within each kind.
    kind = (~scored).to(torch.uint8).mul_(2).add_(still)
    positions = kind.flatten().sort(stable=True).indices[:count]
    return scored, positions, count - at_rest


def _chunk_tokens(row_bytes: int, device_type: str) -> int:
    """The most tokens a chunk may have."""
    budget = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["default"])
    least = _CHUNK_TOKENS.get(device_type, _CHUNK_TOKENS["default"])
    return max(least, budget // row_bytes)


def _spans(start: int, stop: int, size: int, even: bool) -> list[slice]:
    """Cut tokens into chunks of at most ``size``, where wanted of about the same size."""
    tokens = stop - start
    if even and tokens:
        size = math.ceil(tokens / math.ceil(tokens / size))
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _whole_sequences(sequences: Sequences, size: int) -> list[Group]:
    """As many whole sequences to a chunk as fit it; one that does not is a group of chunks."""
    groups: list[Group] = []
    start = stop = first = 0
    for last, length in enumerate([*sequences.lengths.tolist(), size + 1]):  # the last one closes
        if stop - start + length > size and stop > start:
            part = sequences.part(first, last, slice(start, stop))
            groups.append(Group(tuple(_spans(start, stop, size, True)), part))
            start, first = stop, last
        stop += length
    return groups
