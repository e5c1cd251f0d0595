import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from entropyfloor.io import (
    append_jsonl,
    claim_folder,
    plain,
    read_jsonl,
    restore,
    save_json,
    whole_folder,
    write_atomic,
)
from entropyfloor.stats.intervals import Interval


def test_a_file_is_there_whole_in_a_folder_that_is_made(tmp_path):
    target = tmp_path / "new" / "found.json"
    save_json(target, {"β": [1, None]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"β": [1, None]}
    assert [path.name for path in target.parent.iterdir()] == ["found.json"]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "found.txt"
    write_atomic(target, "before")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, "after")
    assert target.read_text() == "before"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_not_is_refused_and_nothing_written(tmp_path, value):
    save_json(tmp_path / "found.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "found.json", [value])
    assert json.loads((tmp_path / "found.json").read_text()) == [1]


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


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_that_a_kill_cut_short_is_left_out_and_cut_off(tmp_path, cut):
    target = tmp_path / "new" / "log.jsonl"
    assert read_jsonl(target) == []
    append_jsonl(target, [{"step": 1}, {"step": 2, "text": "β\u2028"}])
    os.truncate(target, target.stat().st_size - cut)
    assert read_jsonl(target, repair=True) == [{"step": 1}]
    append_jsonl(target, [{"step": 3}])
    assert read_jsonl(target) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_is_whole_or_absent(tmp_path, shared):
    target = tmp_path / "new" / "model"
    with pytest.raises(KeyboardInterrupt), whole_folder(target, shared=shared) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    for name in ("first", "second"):
        with whole_folder(target, shared=shared) as folder:
            (folder / name).touch()
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["first" if shared else "second"]


@dataclass(frozen=True)
class Inner:
    interval: Interval | None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    rows: tuple[Inner, ...]
    readings: list[tuple[int, float | None]]
    by_k: dict[int, Inner]
    settings: dict[str, Any]


ONE = Inner(Interval(0.1, 0.2), (1.0, 2.5))


@pytest.mark.parametrize(
    "record",
    [
        Outer(ONE, (ONE, Inner(None)), [(1, 0.5), (2, None)], {8: ONE}, {"a": [1, {"b": None}]}),
        Outer(None, (), [], {}, {}),
    ],
)
def test_json_and_back(record):
    again = restore(Outer, json.loads(json.dumps(plain(asdict(record)))))
    assert again == record
    assert all(type(row) is Inner for row in again.rows)
    assert again.inner is None or type(again.inner.interval) is Interval


def test_none_stays_none_and_an_unknown_field_is_refused():
    assert restore(Outer | None, None) is None
    with pytest.raises(KeyError, match="colour"):
        restore(Inner, {"interval": None, "colour": "red"})
