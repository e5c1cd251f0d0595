"""Group fine-tuning:  -A C log p_y,  A the group advantage of the response, C = sg(p_y) below tau.

    A_k = (R_k - mean R) / (std R + eps)         over the responses of one prompt
    C   = p_y (detached) where p_y < tau, else 1

Source: GFT, arXiv:2604.14258. C is that of `BoundedProbabilityLoss`: it bounds the inverse
probability that the gradient of log p_y carries. One response with A = 1 and tau = 0 is
cross-entropy; tau > 1 is DFT's weighting; self-generated responses only, tau = 0: a policy gradient
with group-normalised rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .bounded_probability import BoundedProbabilityLoss
from .request import TokenStatistics


class GroupAdvantages(NamedTuple):
    """Advantages of responses and what their groups were like.

    Attributes:
        advantages: ``[n]`` fp32 (fp64 for fp64 rewards); exactly 0 in degenerate groups.
        degenerate: ``[n]`` bool, responses whose group's rewards all agree (a group of one too).
        num_groups: how many groups there are.
        num_degenerate: how many of them are degenerate: they teach nothing.

    """

    advantages: Tensor
    degenerate: Tensor
    num_groups: int
    num_degenerate: int


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    scale: bool = True,
    ddof: int = 0,
    eps: float = 1e-4,
) -> GroupAdvantages:
    """Standardise rewards within their groups, which may be of any sizes and in any order.

    Args:
        rewards: ``[n]``, finite.
        group_ids: ``[n]`` integers; equal ids are one group.
        scale: divide by the group's standard deviation; else only subtract its mean.
        ddof: 0 for the population's standard deviation, 1 for the sample's (trl's GRPO).
        eps: added to the standard deviation.

    Raises:
        ValueError: shapes that do not match, rewards that are not finite, ids that are not
            integers, or a bad option.

    """
    if rewards.ndim != 1 or group_ids.shape != rewards.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} and group_ids {tuple(group_ids.shape)}; "
            "both must be [n], one entry per response"
        )
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f"group_ids are {group_ids.dtype}; they must be integers")
    if not bool(torch.isfinite(rewards.double()).all()):
        raise ValueError("rewards hold NaN or infinite values; leave such responses out")
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof!r}; it must be 0 or 1")
    if eps < 0:
        raise ValueError(f"eps is {eps!r}; it must be >= 0")
    values = rewards.detach().double()
    ids, group = torch.unique(group_ids, return_inverse=True)
    zeros = values.new_zeros(len(ids))
    size = zeros.index_add(0, group, torch.ones_like(values))
    mean = zeros.index_add(0, group, values) / size
    centred = values - mean[group]
    low = zeros.scatter_reduce(0, group, values, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, values, "amax", include_self=False)
    degenerate = (low == high)[group]
    if scale:
        squares = zeros.index_add(0, group, centred.square())
        deviation = (squares / (size - ddof).clamp(min=1)).sqrt()
        # eps may be 0: a degenerate group is set to 0 below, whatever it divides by here.
        centred = centred / torch.where(low == high, torch.ones_like(size), deviation + eps)[group]
    advantages = torch.where(degenerate, torch.zeros_like(centred), centred)
    return GroupAdvantages(
        advantages=advantages if rewards.dtype == torch.float64 else advantages.float(),
        degenerate=degenerate,
        num_groups=len(ids),
        num_degenerate=int((low == high).sum()),
    )


@dataclass(frozen=True)
class GroupFineTuningLoss(BoundedProbabilityLoss):
    """GFT's loss: ``-A C log p_y`` with the advantages given to the engine.

    Pass ``advantages`` to `linear_loss`, `linear_token_statistics` or `token_statistics`: at each
    token that of its response.

    Args:
        tau: weights are p_y below it and 1 above; 0 is no rectification, inf DFT's weighting.

    """

    name: ClassVar[str] = "gft"

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        """Per-token loss in nats, in the statistics' shape; 0 where ignored. Differentiable."""
        return statistics.advantage * super().__call__(statistics)
