import itertools

import pytest

from entropyfloor.stats.pass_at_k import default_ks, pass_at_k


@pytest.mark.parametrize("samples", [1, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(samples):
    for passed in range(samples + 1):
        outcomes = [1] * passed + [0] * (samples - passed)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-15)


def test_large_counts_do_not_overflow():
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_must_not_exceed_the_samples(k):
    with pytest.raises(ValueError, match="draw more samples or lower k"):
        pass_at_k(8, 3, k)


def test_default_ks():
    assert default_ks(1) == (1,)
    assert default_ks(8) == (1, 2, 4, 8)
    assert default_ks(12) == (1, 2, 4, 8, 12)
