"""The example runs from the command line to its table, in miniature."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_pipeline.py"
TINY = ["--depths", "1", "2", "--pretraining-steps", "2", "--grpo-steps", "3"]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("small_pipeline", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_screens_trains_and_shows_both_depths(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--output-dir", str(tmp_path), "--test-problems", "4", *TINY]
    example.main(arguments)
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if "ce-depth-" in line and "│" in line]
    assert len(rows) == 2 and "ce-depth-1" in rows[0] and "ce-depth-2" in rows[1]
    assert "Highest pass@1 before RL: ce-depth-" in shown
    assert sorted(file.name for file in (tmp_path / "seed-0" / "cells").iterdir()) == [
        "ce-depth-1.json",
        "ce-depth-2.json",
    ]
    example.main(arguments)  # from disk
    again = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [line for line in again if "ce-depth-" in line] == rows


def test_an_entropy_floor_beside_them(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    example.main(
        ["--output-dir", str(tmp_path), "--test-problems", "4", *TINY, "--entropy-floor", "1.0"]
    )
    assert "ce-onset_anchor-1-depth-2" in capsys.readouterr().out
    record = tmp_path / "seed-0" / "sft" / "ce-onset_anchor-1-depth-2" / "entropyfloor.json"
    assert json.loads(record.read_text())["floor"]["settings"]["floor"] == 1.0


def test_several_seeds_end_with_their_means(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    example.main(["--output-dir", str(tmp_path), "--test-problems", "4", *TINY, "--seed", "0", "1"])
    last = [line for line in capsys.readouterr().out.splitlines() if "│ ce-depth-2" in line][-1]
    cells = [
        json.loads((tmp_path / f"seed-{seed}" / "cells" / "ce-depth-2.json").read_text())
        for seed in (0, 1)
    ]
    after = [cell["peak"]["pass_at_10"]["value"] for cell in cells]
    assert " ".join(f"{value:.3f}" for value in after) in last
    assert f"{sum(cell['before']['entropy_nats'] for cell in cells) / 2:.3f}" in last
