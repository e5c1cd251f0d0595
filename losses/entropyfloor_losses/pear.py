"""PEAR:  -sg(G_t) log p_y,  G the discounted importance ratio of what follows a token.

    d_t    clip(log p_y - log b_y, -0.08, 0.3)              b the model that wrote the data
    token     log G_t = (T - t) log gamma + sum of d_j over later tokens j of the sequence
    block     the same for a block of tokens: from the block's last token on
    sequence  log G_t = sum of all d_j

with log G clipped to [-10, 5]. A continuation that the model in training would hardly write is not
what RL will visit, and what leads there counts less. Source: PEAR, arXiv:2602.01058, sections 3.3
to 3.7 and Algorithm 1, as two independent renderings quote them: the full text was not at hand, see
docs/losses.md. The paper's weights of wrong answers are left out: SFT has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import check_count
from .request import StatisticsRequest, TokenStatistics
from .sequences import Sequences

_LOG_RATIO = (-0.08, 0.3)
_LOG_WEIGHT = (-10.0, 5.0)


@dataclass(frozen=True)
class PearLoss:
    """Cross-entropy weighted by importance ratios of the continuation.

    Args:
        block_size: tokens that share a weight: 1 is the token level, 0 the sequence level.
        gamma: discount per token in (0, 1], None: the paper's 0.999; the sequence level has none.

    """

    block_size: int = 1
    gamma: float | None = None
    name: ClassVar[str] = "pear"
    reference: ClassVar[str] = "behaviour"
    request: ClassVar[StatisticsRequest] = StatisticsRequest()
    weights_request: ClassVar[StatisticsRequest] = StatisticsRequest(reference_log_prob=True)

    def __post_init__(self) -> None:
        check_count("block_size", self.block_size, least=0)
        if self.gamma is None:
            return
        if self.block_size == 0:
            raise ValueError(
                f"gamma is {self.gamma!r} and block_size 0, a weight for the whole sequence, which "
                "is not discounted; leave gamma out, or choose a block_size >= 1"
            )
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma!r}; it must be in (0, 1]")

    def token_weights(
        self,
        log_prob: Tensor,
        reference_log_prob: Tensor | None,
        sequences: Sequences,
        gather: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """G of each token, ``[n]``; see `sequence_weights`."""
        assert reference_log_prob is not None
        ratio = (log_prob - reference_log_prob).clamp(*_LOG_RATIO)
        if self.block_size == 0:
            log_weight = sequences.sum(ratio)[sequences.ids]
        else:
            gamma = 0.999 if self.gamma is None else self.gamma
            places, lengths = sequences.places, sequences.lengths[sequences.ids]
            ends = (places // self.block_size + 1) * self.block_size - 1
            ends = ends.minimum(lengths - 1)
            of_ends = torch.arange(len(places), device=places.device) + ends - places
            after = sequences.sum_after(ratio)[of_ends]
            log_weight = (lengths - 1 - ends).double() * math.log(gamma) + after
        return log_weight.clamp(*_LOG_WEIGHT).exp()

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        return -statistics.advantage * statistics.log_prob

    def selected(self, statistics: TokenStatistics) -> Tensor:
        """Tokens on which this loss differs from cross-entropy: every scored one."""
        return statistics.scored
