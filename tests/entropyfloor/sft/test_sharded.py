"""Two processes (gloo, CPU) that share a model train as one does, and go on from a checkpoint.

A few cells of the table that ``make test-sharded`` prints: copies of shards as references, of the
start and of an onset, rollouts of a whole copy, a floor that held-out rows bring into force.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import sharded_run
from accelerate import __version__ as accelerate_version
from packaging.version import Version

from two_processes import two_processes

CELLS = ["anchor-full", "auto-lora"]
WAYS = [
    pytest.param(
        "FSDP2",
        marks=pytest.mark.skipif(
            Version(accelerate_version) < Version("1.15"), reason="accelerate below 1.15"
        ),
    ),
    pytest.param(
        "ZeRO-3",
        marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="without deepspeed"),
    ),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    sharded_run.run_all(folder, "one", CELLS)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_same_steps_on_all_ranks_and_resumed(alone, tmp_path, way):
    program = str(Path(sharded_run.__file__))
    with two_processes(program, tmp_path, way, *CELLS, seconds=600):
        pass
    for cell in CELLS:
        difference, agreed, resumed = sharded_run.outcome(cell, alone, tmp_path)
        assert difference < 1e-5, cell
        assert agreed, cell
        assert resumed < 1e-6, cell
    last = json.loads((tmp_path / "auto-lora-0.json").read_text())["whole"][-1]
    assert last["floor_in_force"] and last["floor_weight"] and last["reference_kl"]
    held = [p.name for p in (tmp_path / "anchor-full" / "checkpoint-3").glob("starting_model*")]
    assert sorted(held) == [f"starting_model-{rank}-of-2.safetensors" for rank in (0, 1)]
