import numpy as np
import pytest

from entropyfloor.coupling.gradient_gram import agreement


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
    found = [agreement(gram(sft, rl, 1.0, seed=seed)) for seed in range(200)]
    plain = np.mean([f.cosine for f in found])
    clean = np.mean([f.cosine_without_noise for f in found])
    assert plain < 0.85 * exact and clean == pytest.approx(exact, abs=0.02)
    assert np.mean([f.sft_squared_norm for f in found]) == pytest.approx(sft @ sft, rel=0.02)
    assert np.mean([f.sft_signal for f in found]) == pytest.approx(0.8, abs=0.02)  # 1 / (1 + 1/4)


def test_interval_covers_what_the_sampled_cosine_aims_at():
    rng = np.random.default_rng(9)
    sft, other = rng.standard_normal(60), rng.standard_normal(60)
    rl = 0.5 * sft + other
    found = [agreement(gram(sft, rl, 0.7, seed=seed)) for seed in range(300)]
    aim = np.mean([f.cosine for f in found])
    covered = np.mean([f.interval.low <= aim <= f.interval.high for f in found])
    assert 0.9 <= covered <= 1.0


def test_nothing_but_noise_is_said_to_be_so():
    nothing = np.zeros(300)
    found = [agreement(gram(nothing, nothing, 1.0, seed=seed)) for seed in range(50)]
    assert any(f.cosine_without_noise is None for f in found)
    assert np.mean([f.sft_signal for f in found]) < 0.1
    vanished = agreement(np.zeros((4, 4)))
    assert vanished.cosine is None and vanished.interval is None and vanished.sft_signal is None


@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (4, 6), (4,)])
def test_shapes(shape):
    with pytest.raises(ValueError, match=r"\[2K, 2K\]"):
        agreement(np.zeros(shape))
