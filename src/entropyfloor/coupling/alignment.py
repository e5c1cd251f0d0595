"""How well the SFT and the RL gradient agree at one checkpoint, overall and layer by layer.

Agreement. Demonstrations and prompts are split into K blocks each. With ``s_k`` and ``r_k`` the
gradients of the SFT loss and of minus the reward on block k, all that follows needs only their Gram
matrix, and that is a sum over parameters: it is collected layer by layer.

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

Spectral concentration of two gradients of one weight, and the misalignment it implies.

    share_r(G)  = sum_{i<=r} sigma_i^2 / sum_i sigma_i^2              in [r/min(m,n), 1]
    overlap^2   = |U^T H V|_F^2 / |H|_F^2     U, V: the top r singular vectors of G
    |cos(G, H)| <= cos(alpha - beta),   cos alpha = sqrt(share_r(G)),  cos beta = overlap

Proof. ``P X = U U^T X V V^T`` is an orthogonal projection, G = P G + (I - P) G with |P G|^2 =
share |G|^2, and Cauchy-Schwarz on each part gives |<G, H>| <= |G| |H| (cos alpha cos beta + sin
alpha sin beta). It needs no assumption, and holds with G and H exchanged: the smaller one counts.

Concentration *alone* says something only under an assumption about orientation. If the singular
vectors of G are oriented at random with respect to H, ``E overlap^2 = r^2 / (m n)``, and two
gradients of which G lies almost within r directions are all but orthogonal: the bound for
gradients that are unrelated puts that in place of the measured overlap.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from entropyfloor.coupling.gradients import ParameterGradients
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class GradientAgreement:
    """SFT gradient against RL gradient; both are directions to descend against."""

    # Positive: a step for the reward lowers the SFT loss too, to first order; None if a gradient
    # vanishes
    cosine: float | None
    interval: Interval | None  # 95 %
    # None where a squared norm is not positive, that is lost in noise
    cosine_without_noise: float | None
    sft_squared_norm: float  # unbiased, (nats per token per parameter)^2
    rl_squared_norm: float  # unbiased, (reward per parameter)^2
    sft_signal: float | None  # share of the sampled SFT gradient's squared norm that is not noise
    rl_signal: float | None  # the same of the RL gradient


@dataclass(frozen=True)
class Spectrum:
    """What the top ``r`` singular directions say about two gradients ``[m, n]``."""

    share: float  # energy of the first gradient in its own top r directions, in [0, 1]
    other_share: float  # the same of the second
    cosine_bound: float  # |cos| is at most this, by the measured overlaps
    cosine_bound_if_unrelated: float  # the same for singular vectors oriented at random


@dataclass(frozen=True)
class LayerAlignment:
    """One layer, or all of them."""

    name: str  # of the layer; all
    num_parameters: int  # how many numbers
    agreement: GradientAgreement  # cosine, norms, noise
    # Energy of the SFT gradient in the top r singular directions of its matrices; None without
    # matrices, or for a gradient that vanishes
    sft_share: float | None
    rl_share: float | None  # the same of the RL gradient
    # |cosine| is at most this, by the measured overlap of those directions
    cosine_bound: float | None
    cosine_bound_if_unrelated: float | None  # the same for directions oriented at random


@dataclass(frozen=True)
class GradientAlignment:
    """Alignment at one checkpoint."""

    parameters: str  # adapter or all
    rank: int  # top singular directions
    whole: LayerAlignment  # all parameters together
    layers: tuple[LayerAlignment, ...]  # in the model's order


def align(
    gradients: Iterable[ParameterGradients], *, parameters: str, rank: int
) -> GradientAlignment:
    """Reduce gradients as they come; none is kept.

    Bounds of a layer add up over its matrices: ``|<S, R>| <= sum_m |S_m| |R_m| bound_m``.

    Raises:
        ValueError: no parameter at all.

    """
    whole, layers = _Part(), dict[str, _Part]()
    for parameter in gradients:
        gram = parameter.gram
        directions = spectrum(parameter.sft.mean(0), parameter.rl.mean(0), rank=rank)
        for part in (whole, layers.setdefault(parameter.layer, _Part())):
            part.add(gram, parameter.sft[0].numel(), directions)
    if whole.gram is None:
        raise ValueError("the checkpoint has no parameters of floating point to differentiate by")
    return GradientAlignment(
        parameters,
        rank,
        whole.read("all"),
        tuple(part.read(name) for name, part in layers.items()),
    )


@dataclass
class _Part:
    """Sums over parameters; pairs are of the SFT and the RL gradient."""

    gram: np.ndarray | None = None
    count: int = 0
    energy: np.ndarray = field(default_factory=lambda: np.zeros(2))  # of matrices
    top: np.ndarray = field(default_factory=lambda: np.zeros(2))
    bounds: np.ndarray = field(default_factory=lambda: np.zeros(2))  # of |<S, R>|; if unrelated

    def add(self, gram: np.ndarray, count: int, directions: Spectrum | None) -> None:
        self.gram = gram if self.gram is None else self.gram + gram
        self.count += count
        energies, product = _energies(gram)
        if directions is None:  # a vector is its only direction: it bounds nothing
            self.bounds += product
            return
        self.energy += energies
        self.top += np.array([directions.share, directions.other_share]) * energies
        bounds = [directions.cosine_bound, directions.cosine_bound_if_unrelated]
        self.bounds += product * np.array(bounds)

    def read(self, name: str) -> LayerAlignment:
        assert self.gram is not None
        _, product = _energies(self.gram)
        pairs = zip(self.top.tolist(), self.energy.tolist(), strict=True)
        shares = [top / energy if energy > 0.0 else None for top, energy in pairs]
        bounds = [min(1.0, b / product) if product > 0.0 else None for b in self.bounds.tolist()]
        return LayerAlignment(name, self.count, agreement(self.gram), *shares, *bounds)


def _energies(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """``[|S|^2, |R|^2]`` of the mean gradients, and ``|S| |R|``."""
    half = len(gram) // 2
    # Rounding may leave a little below zero.
    sft, rl = (max(0.0, float(part.mean())) for part in (gram[:half, :half], gram[half:, half:]))
    return np.array([sft, rl]), (sft * rl) ** 0.5


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


def spectrum(gradient: Tensor, other: Tensor, *, rank: int) -> Spectrum | None:
    """Compare two gradients of one weight matrix; None for vectors and for gradients that vanish.

    Args:
        gradient: ``[m, n]``; more dimensions are flattened after the first.
        other: of the same shape.
        rank: top singular directions to look at.

    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if gradient.ndim < 2:
        return None
    first, second = gradient.flatten(1), other.flatten(1)
    if not (bool(first.any()) and bool(second.any())):
        return None
    rank = min(rank, *first.shape)
    left, right, share = top_directions(first, rank)
    other_left, other_right, other_share = top_directions(second, rank)
    bounds = (
        cosine_bound(share, _overlap(left, right, second)),
        cosine_bound(other_share, _overlap(other_left, other_right, first)),
    )
    unrelated = rank / math.sqrt(first.shape[0] * first.shape[1])
    return Spectrum(
        share,
        other_share,
        min(bounds),
        min(cosine_bound(s, unrelated) for s in (share, other_share)),
    )


def top_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Top left ``[m, r]`` and right ``[n, r]`` singular vectors, and their share of the energy.

    Through the eigenvectors of the smaller Gram matrix, in float64: the embedding of a vocabulary
    of 150k costs its width squared and not a singular value decomposition.
    """
    matrix = matrix.double()
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    energies, vectors = torch.linalg.eigh(gram)
    small = vectors[:, -rank:]
    large = matrix.T @ small if wide else matrix @ small
    large = torch.linalg.qr(large).Q  # orthonormal even where a singular value is zero
    share = float(energies[-rank:].clamp_min(0).sum() / energies.clamp_min(0).sum())
    left, right = (small, large) if wide else (large, small)
    return left, right, min(1.0, share)


def cosine_bound(share: float, overlap: float) -> float:
    """``cos(alpha - beta)`` of the formula above."""
    share, overlap = min(1.0, max(0.0, share)), min(1.0, max(0.0, overlap))
    outside = math.sqrt((1.0 - share) * (1.0 - overlap * overlap))
    return min(1.0, math.sqrt(share) * overlap + outside)


def _overlap(left: Tensor, right: Tensor, matrix: Tensor) -> float:
    """Square root of the matrix' energy share between two subspaces."""
    wide = matrix.double()
    return float((left.T @ wide @ right).norm() / wide.norm())
