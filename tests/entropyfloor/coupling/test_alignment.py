"""The Gram matrix of blocks, and the spectra of one weight's gradients."""

import math

import numpy as np
import pytest
import torch

from entropyfloor.coupling.alignment import agreement, cosine_bound, spectrum, top_directions


def gram(signal_sft, signal_rl, noise, blocks=4, seed=0):
    rng = np.random.default_rng(seed)
    rows = [s + noise * rng.standard_normal(len(s)) for s in [signal_sft] * blocks]
    rows += [s + noise * rng.standard_normal(len(s)) for s in [signal_rl] * blocks]
    return np.array(rows) @ np.array(rows).T


def test_noise_is_removed():
    rng = np.random.default_rng(9)
    sft, other = rng.standard_normal(500), rng.standard_normal(500)
    rl = 0.8 * sft + 0.6 * other
    exact = float(sft @ rl / np.linalg.norm(sft) / np.linalg.norm(rl))
    result = [agreement(gram(sft, rl, 1.0, seed=seed)) for seed in range(200)]
    plain = np.mean([f.cosine for f in result])
    clean = np.mean([f.cosine_without_noise for f in result])
    assert plain < 0.85 * exact and clean == pytest.approx(exact, abs=0.02)
    assert np.mean([f.sft_squared_norm for f in result]) == pytest.approx(sft @ sft, rel=0.02)
    assert np.mean([f.sft_signal for f in result]) == pytest.approx(0.8, abs=0.02)  # 1 / (1 + 1/4)


def test_interval_covers_what_the_sampled_cosine_aims_at():
    rng = np.random.default_rng(9)
    sft, other = rng.standard_normal(60), rng.standard_normal(60)
    rl = 0.5 * sft + other
    result = [agreement(gram(sft, rl, 0.7, seed=seed)) for seed in range(300)]
    aim = np.mean([f.cosine for f in result])
    covered = np.mean([f.interval.low <= aim <= f.interval.high for f in result])
    assert 0.9 <= covered <= 1.0


def test_nothing_but_noise_is_said_to_be_so():
    nothing = np.zeros(300)
    result = [agreement(gram(nothing, nothing, 1.0, seed=seed)) for seed in range(50)]
    assert any(f.cosine_without_noise is None for f in result)
    assert np.mean([f.sft_signal for f in result]) < 0.1
    vanished = agreement(np.zeros((4, 4)))
    assert vanished.cosine is None and vanished.interval is None and vanished.sft_signal is None


@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (4, 6), (4,)])
def test_shapes(shape):
    with pytest.raises(ValueError, match=r"\[2K, 2K\]"):
        agreement(np.zeros(shape))


def matrix(seed, m=12, n=7, decay=0.0):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(m, n, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    return (u * (s * torch.exp(-decay * torch.arange(len(s))))) @ v


@pytest.mark.parametrize(("m", "n"), [(12, 7), (7, 12), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_share_and_directions_equal_the_svd(m, n, rank):
    g = matrix(0, m, n, decay=0.3)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    left, right, share = top_directions(g, rank)
    assert share == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()), abs=1e-12)
    for result, exact in ((left, u[:, :rank]), (right, v[:rank].T)):
        torch.testing.assert_close(result @ result.T, exact @ exact.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_bound_holds(decay, rank):
    for seed in range(30):
        g, h = matrix(seed, decay=decay), matrix(seed + 100, decay=decay)
        h = h + (seed % 3) * g  # from unrelated to nearly parallel
        cosine = float((g * h).sum() / (g.norm() * h.norm()))
        assert abs(cosine) <= spectrum(g, h, rank=rank).cosine_bound + 1e-12


def test_the_bound_is_reached():
    """G in the direction of one singular pair, H with a known part of it: no slack at all."""
    g = torch.zeros(4, 4, dtype=torch.float64)
    h = g.clone()
    g[0, 0], h[0, 0], h[1, 1] = 1.0, 0.6, 0.8
    directions = spectrum(g, h, rank=1)
    assert directions.share == 1.0 and directions.cosine_bound == pytest.approx(0.6, abs=1e-12)
    assert directions.cosine_bound_if_unrelated == pytest.approx(1 / 4, abs=1e-12)


def test_the_bound_says_nothing_without_concentration():
    assert cosine_bound(0.5, math.sqrt(0.5)) == pytest.approx(1.0)
    assert cosine_bound(1.0, 0.0) == 0.0
    g = matrix(0)
    assert spectrum(g, g, rank=3).cosine_bound == pytest.approx(1.0)


def test_random_orientation_has_the_expected_overlap():
    """E overlap^2 = r^2 / (m n): what the bound for unrelated directions rests on."""
    g, rank = matrix(0, decay=1.0), 2
    left, right, _ = top_directions(g, rank)
    shares = []
    for seed in range(400):
        h = torch.randn(12, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        shares.append(float((left.T @ h @ right).norm() ** 2 / h.norm() ** 2))
    assert sum(shares) / 400 == pytest.approx(rank**2 / 84, rel=0.12)


def test_what_has_no_spectrum():
    assert spectrum(torch.ones(3), torch.ones(3), rank=1) is None
    assert spectrum(torch.zeros(3, 3), torch.ones(3, 3), rank=1) is None
    assert spectrum(matrix(0), matrix(1), rank=99).share == pytest.approx(1.0)
    with pytest.raises(ValueError, match="rank must be at least 1"):
        spectrum(matrix(0), matrix(1), rank=0)
