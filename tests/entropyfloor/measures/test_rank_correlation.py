import pytest

from entropyfloor.measures.rank_correlation import spearman


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
