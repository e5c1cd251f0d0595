import pytest

from entropyfloor.claimed_folder import claim_folder


def test_a_folder_is_claimed_once_and_stays_with_its_settings(tmp_path):
    folder = tmp_path / "new" / "run"
    claim_folder(folder, {"depths": (1, 2), "seed": 0})
    claim_folder(folder, {"seed": 0, "depths": [1, 2]})  # JSON has no tuples
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 then, 1 now\)"):
        claim_folder(folder, {"depths": (1, 2), "seed": 1})
    with pytest.raises(ValueError, match="samples: None then, 8 now"):
        claim_folder(folder, {"depths": (1, 2), "seed": 0, "samples": 8})


def test_parts_of_a_folder_can_be_claimed_apart(tmp_path):
    claim_folder(tmp_path, {"loss": "ce"}, file="ce.json")
    claim_folder(tmp_path, {"loss": "sed"}, file="sed.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ce.json", "sed.json"]
