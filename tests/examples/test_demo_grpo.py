"""The example on the demo's task, in miniature, with a random model: every rollout is wrong."""

import importlib.util
from pathlib import Path

import pytest

from tiny_models import tiny_model, tiny_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo_grpo.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("demo_grpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "start"
    tiny_model(max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_stage_runs(example, checkpoint, tmp_path, capsys):
    arguments = [checkpoint, "--output-dir", str(tmp_path / "out"), "--problems", "3"]
    arguments += ["--held-out", "2", "--steps", "3", "--prompts-per-step", "1"]
    with pytest.raises(ValueError, match="passes"):
        example.main(arguments)  # nothing is in the band: all wrong
    example.main([*arguments, "--lowest", "0"])
    shown = capsys.readouterr().out
    assert "kept 3 of 3 prompts" in shown
    assert "Step 3 of 3" in shown or "Step 2 of 3" in shown
    for name in ("start", "checkpoint-1", "checkpoint-3"):
        assert f"| {name} |" in shown
