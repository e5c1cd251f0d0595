"""The example runs from the command line to both tables, in miniature, and once more from disk."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_gft.py"
TINY = ["--seeds", "0", "--budgets", "2", "--pipeline-budgets", "2", "--test-problems", "4"]
TINY += ["--pretraining-steps", "2", "--grpo-steps", "1"]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("small_gft", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_tables(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--output-dir", str(tmp_path), *TINY]
    example.main(arguments)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    arms = {line.split("│")[1].strip(): line for line in rows}
    rates = ("lr 0.001", "lr 0.0003")
    expected = {"base", "teacher"}
    expected |= {f"{loss}, {rate}, 2" for loss in example.SFT_ARMS for rate in rates}
    expected |= {f"{arm}, 2" for arm in example.GFT_ARMS}
    expected |= {f"{pipeline}, 2" for pipeline in example.PIPELINES}
    assert set(arms) == expected
    measured = json.loads((tmp_path / "arms.json").read_text())
    (ce,), (gft,) = measured["ce, lr 0.001, 2"], measured["gft, 2"]
    assert ce["tokens"] == 600
    assert gft["tokens"] == sum(gft["training"]["tokens"].values())
    assert gft["tokens"] == pytest.approx(600, rel=0.3)  # a random model seldom ends after 3 tokens
    assert set(gft["training"]["tokens"]) >= {"expert", "teacher", "self"}
    (alone,) = measured["gft without a teacher, 2"]
    assert "teacher" not in {k for k, v in alone["training"]["tokens"].items() if v}
    assert gft["kl_to_base"] > 0
    assert measured["base"][0]["kl_to_base"] == pytest.approx(0.0, abs=1e-6)
    example.main(arguments)  # from disk
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert again == rows
