"""TailSFT:  cross-entropy without the sequences whose loss fell furthest since training began.

    d = mean over the sequence's tokens of (log b_y - log p_y)      b the model of the beginning

Of the global batch, the ``drop_fraction`` with the smallest d (the model has learnt them most) are
left out; the loss is the mean over the tokens of the others. Source: TailSFT, arXiv:2608.25756. How
we depart: the paper ranks the sequences of one forward pass over all processes, we those of the
whole optimizer step, so that accumulation changes nothing; a sequence that fell by less than 0.001
nats a token stays, so that rounding decides nothing (at the first step all stay), and so do equals
of the last one that does; the fraction is constant (the paper ramps it too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .inputs import check_number
from .request import StatisticsRequest, TokenStatistics
from .sequences import Sequences

_LEAST_FALL = 1e-3  # nats per token


@dataclass(frozen=True)
class TailLoss:
    """Cross-entropy on the sequences that have been learnt least.

    Args:
        drop_fraction: share of a global batch's sequences that is left out, in [0, 1).

    """

    drop_fraction: float = 0.5
    name: ClassVar[str] = "tail"
    reference: ClassVar[str] = "initial"
    request: ClassVar[StatisticsRequest] = StatisticsRequest()
    weights_request: ClassVar[StatisticsRequest] = StatisticsRequest(reference_log_prob=True)
    ranks_the_batch: ClassVar[bool] = True
    zero_advantage_moves_nothing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        allowed = "in [0, 1): 0 is cross-entropy"
        check_number("drop_fraction", self.drop_fraction, lambda v: 0 <= v < 1, allowed)

    def token_weights(
        self,
        log_prob: Tensor,
        reference_log_prob: Tensor | None,
        sequences: Sequences,
        gather: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """0, or tokens of the batch by kept ones, ``[n]``; see `sequence_weights`."""
        assert reference_log_prob is not None
        change = sequences.sum(reference_log_prob - log_prob) / sequences.lengths
        changes, lengths = gather(change), gather(sequences.lengths.double())
        if not len(changes):
            return log_prob
        last = changes.sort().values[int(self.drop_fraction * len(changes))]
        last = last.clamp(max=-_LEAST_FALL)
        scale = lengths.sum() / lengths[changes >= last].sum()
        return ((change >= last) * scale)[sequences.ids]

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        return -statistics.advantage * statistics.log_prob

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens of sequences that are left out."""
        return (statistics.advantage == 0) & statistics.scored
