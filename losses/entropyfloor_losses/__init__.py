"""Entropy-preserving SFT losses and exact token statistics. Needs torch, nothing else.

    from entropyfloor_losses import SelectiveEntropyLoss, linear_loss
    loss, statistics = linear_loss(hidden, head.weight, labels, SelectiveEntropyLoss(tau=0.9))
    loss.backward()

Every loss maps `TokenStatistics` to one value per token and runs on every engine: full logits
(`token_statistics`), or fused from hidden states and head weight (`linear_loss` to train,
`linear_token_statistics` where per-token gradients are needed).
"""

from .anchored import AnchoredLoss
from .bounded_probability import BoundedProbabilityLoss
from .coverage import CoverageLoss
from .cross_entropy import CrossEntropyLoss
from .dynamic_entropy import DynamicEntropyLoss
from .entropy_adaptive import EntropyAdaptiveLoss
from .entropy_bonus import EntropyBonusLoss
from .entropy_terms import PLACES, EntropyTerm, PenalisedLoss
from .gem import GEMLoss
from .gibbs import GibbsLoss
from .group import GroupAdvantages, GroupFineTuningLoss, group_advantages
from .head import linear_loss, linear_token_statistics
from .inputs import IGNORE_INDEX, ReferenceHead, ReferenceTopK
from .plain import token_statistics
from .power import PowerLoss
from .proximal import ProximalLoss
from .registry import (
    LOSS_NAMES,
    loss_by_name,
    loss_name_and_options,
    loss_options,
)
from .request import (
    StatisticsRequest,
    TokenStatistics,
    needs_calibration,
    reduce_tokens,
    token_mean,
)
from .selective_entropy import SelectiveEntropyLoss
from .sequences import SequenceWeights, sequence_weights
from .tail import TailLoss

__version__ = "0.1.0"

__all__ = [
    "IGNORE_INDEX",
    "LOSS_NAMES",
    "PLACES",
    "AnchoredLoss",
    "BoundedProbabilityLoss",
    "CoverageLoss",
    "CrossEntropyLoss",
    "DynamicEntropyLoss",
    "EntropyAdaptiveLoss",
    "EntropyBonusLoss",
    "EntropyTerm",
    "GEMLoss",
    "GibbsLoss",
    "GroupAdvantages",
    "GroupFineTuningLoss",
    "PenalisedLoss",
    "PowerLoss",
    "ProximalLoss",
    "ReferenceHead",
    "ReferenceTopK",
    "SelectiveEntropyLoss",
    "SequenceWeights",
    "StatisticsRequest",
    "TailLoss",
    "TokenStatistics",
    "group_advantages",
    "linear_loss",
    "linear_token_statistics",
    "loss_by_name",
    "loss_name_and_options",
    "loss_options",
    "needs_calibration",
    "reduce_tokens",
    "sequence_weights",
    "token_mean",
    "token_statistics",
]
