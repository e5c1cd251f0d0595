import numpy as np
import pytest
from scipy import stats

from entropyfloor.stats.rank_correlation import spearman, spearman_test


def test_ties_share_their_rank():
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="at least three"):
        spearman([1, 2], [1, 2])
    with pytest.raises(ValueError, match="3 measures and 2 outcomes"):
        spearman([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="vary"):
        spearman([1, 1, 1], [1, 2, 3])


def test_exact_p_values():
    # Of the 24 orders of four, only the same and the reverse are as extreme as perfect.
    assert spearman_test([1, 2, 3, 4], [1, 2, 3, 4]) == (pytest.approx(2 / 24), "exact")
    assert spearman_test([1, 2, 3, 4], [9, 7, 5, 3]).p_value == pytest.approx(2 / 24)


def test_random_permutations_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    measure = rng.permutation(9).tolist()
    outcome = (np.array(measure) + rng.normal(0, 3, 9)).tolist()
    found = spearman_test(measure, outcome)
    assert found.method == "permutation"
    assert found.p_value == pytest.approx(
        stats.spearmanr(measure, outcome).pvalue, abs=0.02
    )  # a t approximation, good enough at nine pairs
