"""The rise in SFT loss against the KL: is the identity there, and if not, why not.

    rise  = mean over demonstrations y of   log p_sft(y) - log p_rl(y)            nats per answer
    KL    = mean over own samples y of      sum_t KL(p_sft(.|y_<t) || p_rl(.|y_<t))
    KL_D  = the same sum over the contexts of the demonstrations

    rise - KL = (rise - KL_D) + (KL_D - KL)
                 tokens          contexts

arXiv:2601.07389, Theorem 3.1, says rise = KL at an SFT optimum and on the distribution of the
demonstrations. The first term is zero if the SFT model predicts the next token of the
demonstrations as it comes: not so on held-out rows of a model that is over- or underfitted. The
second is zero if its own samples visit the contexts that demonstrations visit.

The identity is one of whole answers. Per token it would compare means over answers of different
lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entropyfloor.stats.intervals import Interval, bootstrap_interval


@dataclass(frozen=True)
class Identity:
    """Nats per answer; intervals by name (``rise``, ``kl``, ``gap``, ``tokens``, ``contexts``).

    Attributes:
        rise: of the SFT loss on the demonstrations.
        kl: ``KL(p_sft || p_rl)`` on the SFT model's own samples for the same prompts.
        kl_sampled: the same from sampled log ratios instead of exact KLs at every token: agrees
            with ``kl`` up to sampling noise, which is a check of the instrument.
        gap: ``rise - kl``.
        tokens: part of the gap.
        contexts: part of the gap.
        intervals: 95 %, resampling prompts.

    """

    rise: float
    kl: float
    kl_sampled: float
    gap: float
    tokens: float
    contexts: float
    intervals: dict[str, Interval]


def identity(
    rises: Sequence[float],
    demonstration_kls: Sequence[float],
    own_kls: Sequence[float],
    own_ratios: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Identity:
    """Put the parts together, one number per prompt in each sequence, nats per answer.

    Args:
        rises: ``log p_sft - log p_rl`` of each demonstration.
        demonstration_kls: summed KLs at its tokens.
        own_kls: mean over the SFT model's samples for the prompt of their summed KLs.
        own_ratios: mean over the same samples of ``log p_sft - log p_rl``.
        weights: how often each prompt comes; equally often when left out.
        seed: of the bootstrap.

    """
    count = len(rises)
    if not count or any(len(s) != count for s in (demonstration_kls, own_kls, own_ratios)):
        raise ValueError(
            "the identity needs one number per prompt, for the same prompts, in every part; got "
            f"{[len(s) for s in (rises, demonstration_kls, own_kls, own_ratios)]}"
        )
    rise, on_demos, own, ratios = (
        np.asarray(s, dtype=np.float64) for s in (rises, demonstration_kls, own_kls, own_ratios)
    )
    below = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    parts = {
        "rise": rise,
        "kl": own,
        "gap": rise - own,
        "tokens": rise - on_demos,
        "contexts": on_demos - own,
    }
    intervals = {}
    for name, values in parts.items():
        found = bootstrap_interval((values * below).tolist(), below.tolist(), seed=seed)
        if found is not None:
            intervals[name] = found
    mean = {name: float((v * below).sum() / below.sum()) for name, v in parts.items()}
    return Identity(
        **mean, kl_sampled=float((ratios * below).sum() / below.sum()), intervals=intervals
    )
