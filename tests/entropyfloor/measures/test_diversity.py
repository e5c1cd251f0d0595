import pytest

from entropyfloor.measures.diversity import unique_fraction


def test_unique_fraction():
    assert unique_fraction(["a", "b", "a", "a"]) == 0.5
    assert unique_fraction(["a"]) == 1.0
    with pytest.raises(ValueError, match="no completions"):
        unique_fraction([])
