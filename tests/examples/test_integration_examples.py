"""The examples that need no other framework run as they are written; the loss is ours."""

import importlib.util
import json
from pathlib import Path

import pytest

from tiny_models import save_tiny

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"


@pytest.mark.parametrize("name", ["trainer", "loop"])
def test_it_trains_and_saves(name, tmp_path):
    save_tiny(tmp_path / "model", "qwen2")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} and {i}"}) + "\n" for i in range(8)))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(tmp_path / "model"), str(rows), str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()
    (record, *_) = tmp_path.rglob("entropyfloor.json")
    assert json.loads(record.read_text())["options"] == {"beta": 0.7}
