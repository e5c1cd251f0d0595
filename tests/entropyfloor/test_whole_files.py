import json
import os

import pytest

from entropyfloor.whole_files import save_json, write_whole


def test_a_file_is_there_whole_in_a_folder_that_is_made(tmp_path):
    target = tmp_path / "new" / "found.json"
    save_json(target, {"β": [1, None]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"β": [1, None]}
    assert [path.name for path in target.parent.iterdir()] == ["found.json"]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "found.txt"
    write_whole(target, "before")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "after")
    assert target.read_text() == "before"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_not_is_refused_and_nothing_written(tmp_path, value):
    save_json(tmp_path / "found.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "found.json", [value])
    assert json.loads((tmp_path / "found.json").read_text()) == [1]
