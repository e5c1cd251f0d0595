"""What the inner products of a few independent gradients say: cosine, norms, noise.

Demonstrations and prompts are split into K blocks each. With ``s_k`` and ``r_k`` the gradients of
the SFT loss and of minus the reward on block k, all that follows needs only their Gram matrix, and
that is a sum over parameters: it is collected layer by layer.

    S = mean_k s_k,  R = mean_k r_k
    cosine            <S, R> / (|S| |R|)           of the gradients as sampled
    squared norm      mean over k != l of <s_k, s_l>        unbiased: noise of two blocks is not
                                                            correlated; may be negative
    signal            squared norm / |S|^2         1: no noise; 0: nothing but noise
    cosine, noise     <S, R> / sqrt(squared norm of s * squared norm of r)
    removed

Sampling noise lengthens both gradients and hides alignment: the plain cosine is too small in
absolute value, and ``signal`` says by how much. Intervals are Student's t over the jackknife that
leaves out one block at a time.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class GradientAgreement:
    """SFT gradient against RL gradient; both are directions to descend against.

    Attributes:
        cosine: positive: a step for the reward lowers the SFT loss too, to first order; None if a
            gradient vanishes.
        interval: 95 %.
        cosine_without_noise: None where a squared norm is not positive, that is lost in noise.
        sft_squared_norm: unbiased, (nats per token per parameter)^2.
        rl_squared_norm: unbiased, (reward per parameter)^2.
        sft_signal: share of the sampled SFT gradient's squared norm that is not noise.
        rl_signal: the same of the RL gradient.

    """

    cosine: float | None
    interval: Interval | None
    cosine_without_noise: float | None
    sft_squared_norm: float
    rl_squared_norm: float
    sft_signal: float | None
    rl_signal: float | None


def agreement(gram: np.ndarray) -> GradientAgreement:
    """Read a Gram matrix.

    Args:
        gram: ``[2K, 2K]``, rows s_1 ... s_K, r_1 ... r_K; K of 2 or more.

    Raises:
        ValueError: another shape.

    """
    gram = np.asarray(gram, dtype=np.float64)
    blocks = gram.shape[0] // 2
    if gram.ndim != 2 or gram.shape != (2 * blocks, 2 * blocks) or blocks < 2:
        raise ValueError(
            f"the Gram matrix of 2 or more SFT blocks and as many RL blocks is [2K, 2K]; got "
            f"{list(gram.shape)}"
        )
    ss, rr, sr = gram[:blocks, :blocks], gram[blocks:, blocks:], gram[:blocks, blocks:]
    sft_norm, rl_norm = _between(ss), _between(rr)
    clean = None
    if sft_norm > 0.0 and rl_norm > 0.0:
        clean = float(np.clip(sr.mean() / np.sqrt(sft_norm * rl_norm), -1.0, 1.0))
    cosine = _cosine(ss, rr, sr)
    return GradientAgreement(
        cosine,
        None if cosine is None else _jackknife(ss, rr, sr, cosine),
        clean,
        sft_norm,
        rl_norm,
        _signal(sft_norm, ss),
        _signal(rl_norm, rr),
    )


def _between(part: np.ndarray) -> float:
    blocks = len(part)
    return float((part.sum() - np.trace(part)) / (blocks * (blocks - 1)))


def _signal(norm: float, part: np.ndarray) -> float | None:
    total = float(part.mean())
    return None if total <= 0.0 else float(np.clip(norm / total, 0.0, 1.0))


def _cosine(ss: np.ndarray, rr: np.ndarray, sr: np.ndarray) -> float | None:
    length = ss.mean() * rr.mean()
    return None if length <= 0.0 else float(np.clip(sr.mean() / np.sqrt(length), -1.0, 1.0))


def _jackknife(ss: np.ndarray, rr: np.ndarray, sr: np.ndarray, whole: float) -> Interval | None:
    blocks = len(ss)
    left_out = []
    for block in range(blocks):
        keep = np.ix_(*[np.delete(np.arange(blocks), block)] * 2)
        cosine = _cosine(ss[keep], rr[keep], sr[keep])
        if cosine is None:
            return None
        left_out.append(cosine)
    spread = np.sqrt((blocks - 1) / blocks * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    reach = float(stats.t.ppf(0.975, blocks - 1) * spread)
    return Interval(max(-1.0, whole - reach), min(1.0, whole + reach))
