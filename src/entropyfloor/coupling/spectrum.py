"""Spectral concentration of two gradients of one weight, and the misalignment it implies.

    share_r(G)  = sum_{i<=r} sigma_i^2 / sum_i sigma_i^2              in [r/min(m,n), 1]
    overlap^2   = |U^T H V|_F^2 / |H|_F^2     U, V: the top r singular vectors of G
    |cos(G, H)| <= cos(alpha - beta),   cos alpha = sqrt(share_r(G)),  cos beta = overlap

Proof. ``P X = U U^T X V V^T`` is an orthogonal projection, G = P G + (I - P) G with |P G|^2 =
share |G|^2, and Cauchy-Schwarz on each part gives |<G, H>| <= |G| |H| (cos alpha cos beta + sin
alpha sin beta). It needs no assumption, and holds with G and H exchanged: the smaller one counts.

Concentration *alone* says something only under an assumption about orientation. If the singular
vectors of G are oriented at random with respect to H, ``E overlap^2 = r^2 / (m n)``, and two
gradients of which G lies almost within r directions are all but orthogonal. That is what
:func:`cosine_bound_if_unrelated` puts in place of the measured overlap.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """What the top ``r`` singular directions say about two gradients ``[m, n]``.

    Attributes:
        rank: ``r``, at most ``min(m, n)``.
        share: energy of the first gradient in its own top r directions, in [0, 1].
        other_share: the same of the second.
        cosine_bound: ``|cos|`` is at most this, by the measured overlaps.
        cosine_bound_if_unrelated: the same for singular vectors oriented at random.

    """

    rank: int
    share: float
    other_share: float
    cosine_bound: float
    cosine_bound_if_unrelated: float


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
        rank,
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
