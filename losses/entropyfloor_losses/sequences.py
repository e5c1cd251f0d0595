"""Weights of tokens that come from their sequence: formed before the loss, constants to it.

    weights = SequenceWeights(loss, position_ids)                        formed on the way
    value, _ = linear_loss(hidden, weight, labels, loss, advantages=weights)

or, for a loss that ranks the sequences of a whole batch, at the price of one more matrix product

    statistics = linear_token_statistics(hidden, weight, labels, request=loss.weights_request)
    weights = sequence_weights(loss, statistics, position_ids)
    value, _ = linear_loss(hidden, weight, labels, loss, advantages=weights)

A sequence is a row, or in a packed row what the position ids say: each 0 begins one. Of a sequence
only scored tokens count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .request import StatisticsRequest, TokenStatistics


@dataclass(frozen=True)
class Sequences:
    """Which sequence each of n scored tokens belongs to."""

    ids: Tensor  # [n] int64, ascending from 0
    lengths: Tensor  # [S] int64, scored tokens of each

    @classmethod
    def of(
        cls,
        scored: Tensor,
        position_ids: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Sequences:
        """Number the sequences of ``scored`` ``[..., length]`` that have a scored token.

        Args:
            scored: which tokens are.
            position_ids: of all of them, the same shape; None: a row is a sequence.
            tokens: ``[n]`` flat positions of the scored ones, where the caller knows them.

        Raises:
            ValueError: position ids of another shape.

        """
        starts = torch.zeros_like(scored)
        starts[..., 0] = True
        if position_ids is not None:
            if position_ids.shape != scored.shape:
                raise ValueError(
                    f"position_ids have shape {tuple(position_ids.shape)} and the tokens "
                    f"{tuple(scored.shape)}; give one position per token"
                )
            starts = starts | (position_ids == 0)
        if tokens is None:
            tokens = scored.flatten().nonzero().squeeze(1)
        number = starts.flatten().cumsum(0).index_select(0, tokens)
        _, ids, lengths = torch.unique_consecutive(number, return_inverse=True, return_counts=True)
        return cls(ids, lengths)

    def sum(self, values: Tensor) -> Tensor:
        """``[S]`` fp64 sums of ``values`` ``[n]``."""
        zeros = values.new_zeros(len(self.lengths), dtype=torch.float64)
        return zeros.index_add(0, self.ids, values.double())

    def part(self, first: int, last: int, tokens: slice) -> Sequences:
        """Sequences ``first`` up to ``last``, which are these tokens, numbered anew."""
        return Sequences(self.ids[tokens] - first, self.lengths[first:last])


def gather_nothing(per_sequence: Tensor) -> Tensor:
    """One process, and one call for the whole batch."""
    return per_sequence


def sequence_weights(
    loss: Any,
    statistics: TokenStatistics,
    position_ids: Tensor | None = None,
    *,
    gather: Callable[[Tensor], Tensor] = gather_nothing,
) -> Tensor:
    """The weights that ``loss`` gives to tokens, a constant; 0 where ignored.

    Args:
        loss: has ``weights_request`` and ``token_weights`` (DCO, TailSFT).
        statistics: of the whole sequences, computed with ``loss.weights_request``.
        position_ids: ``[..., length]``, the statistics' shape; None: a row is a sequence.
        gather: ``[S]`` numbers of these sequences -> those of all that the global batch has; for
            losses that rank sequences.

    Returns:
        ``[..., length]``, to be given as ``advantages``; the dtype of ``log_prob``.

    """
    scored = statistics.scored
    base = statistics.get("reference_log_prob")
    weights = loss.token_weights(
        statistics.log_prob.detach()[scored],
        None if base is None else base.detach()[scored],
        Sequences.of(scored, position_ids),
        gather,
    )
    return torch.zeros_like(statistics.log_prob).masked_scatter(
        scored, weights.to(statistics.log_prob.dtype)
    )


@dataclass(frozen=True)
class SequenceWeights:
    """Weights that `linear_loss` forms itself, from the logits that the loss needs anyway.

    Chunks end where sequences do. A sequence that is longer than a chunk is gone through twice.

    Args:
        loss: has ``weights_request`` and ``token_weights`` and ranks no sequences (DCO).
        position_ids: ``[..., length]``, the labels' shape; None: a row is a sequence.

    """

    loss: Any
    position_ids: Tensor | None = None

    def check(self, request: StatisticsRequest) -> None:
        """Refuse a loss whose weights need more than its own sequences."""
        needs = getattr(self.loss, "weights_request", None)
        name = type(self.loss).__name__
        if needs is None:
            raise ValueError(f"{name} has no weights of sequences: leave SequenceWeights out")
        ranks = getattr(self.loss, "ranks_the_batch", False)
        if ranks or needs.options.items() - request.options.items():
            raise ValueError(
                f"the weights of {name} cannot be formed on the way: they need the whole batch, or "
                "statistics that the loss does not. Form them first with sequence_weights(...) and "
                "pass these as advantages"
            )

    def of(self, values: dict[str, Tensor], sequences: Sequences) -> Tensor:
        """``[n]`` weights of the tokens of ``sequences``, from their statistics."""
        weights: Tensor = self.loss.token_weights(
            values["log_prob"], None, sequences, gather_nothing
        )
        return weights.to(values["log_prob"].dtype)
