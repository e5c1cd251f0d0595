"""DCO, direct coverage optimisation:  -log(1 - (1 - P)^N),  P = prod_t p_y of the whole sequence.

The probability that N samples hold the demonstration at least once: what the group of N in the RL
to come needs, and what p*(g) is about. Its gradient is cross-entropy's times

    F = N P (1 - P)^(N-1) / (1 - (1 - P)^N)

which is formed before the loss (`sequence_weights`) and given to it; the value is F times
cross-entropy. F is 1 for P to 0 and falls to 0 once P is some times 1/N: a sequence that N samples
find stops pulling. At N = 1, F is exactly 1: cross-entropy. Source: arXiv:2502.07154. How we
depart: the paper exchanges sequences with F near 0 for others; we leave them in the batch. Sums are
over tokens of the global batch, not over sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_count
from .request import EveryToken, StatisticsRequest, TokenStatistics
from .sequences import Sequences


def coverage_weight(log_prob: Tensor, group_size: int) -> Tensor:
    """F of ``log P`` ``[S]`` (fp64), in [0, 1]."""
    if group_size == 1:
        return torch.ones_like(log_prob)
    log_miss = torch.log(-torch.expm1(log_prob))  # log(1 - P)
    covered = -torch.expm1(group_size * log_miss)
    weight = group_size * (log_prob + (group_size - 1) * log_miss).exp() / covered
    return torch.where(covered > 0, weight, torch.ones_like(weight))  # P below fp64: the limit


@dataclass(frozen=True)
class CoverageLoss(EveryToken):
    """Cross-entropy weighted by what a sequence still lacks to be found in N samples.

    Args:
        group_size: N >= 1, the samples per prompt of the RL to come.

    """

    group_size: int = 8
    name: ClassVar[str] = "dco"
    request: ClassVar[StatisticsRequest] = StatisticsRequest()
    weights_request: ClassVar[StatisticsRequest] = StatisticsRequest()

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size, least=1)

    def token_weights(
        self,
        log_prob: Tensor,
        reference_log_prob: Tensor | None,
        sequences: Sequences,
        gather: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """F of each token's sequence, ``[n]``; see `sequence_weights`."""
        return coverage_weight(sequences.sum(log_prob), self.group_size)[sequences.ids]

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        return -statistics.advantage * statistics.log_prob
