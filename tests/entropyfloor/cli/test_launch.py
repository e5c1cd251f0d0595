"""``accelerate launch`` of every training verb with two processes, which on a CPU are gloo's."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
LAUNCH = ["--num_processes", "2", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
# A port of their own each: two launches at one time would join each other's processes and wait.
LAUNCH += ["--main_process_port", "0"]
ROWS = [
    {
        "prompt": f"{i} + 1 =",
        "completion": f" {i + 1}",
        "responses": [
            {"source": "expert", "completion": f" {i + 1}", "reward": 1.0},
            {"source": "teacher", "completion": f" {i + 2}", "reward": 0.0},
        ],
    }
    for i in range(8)
]
FLOOR = {"entropy_floor": 0.1, "floor_place": "anchor", "floor_probe_prompts": 3}
VERBS = {
    "sft": ({**FLOOR, "dataset_name": "rows.jsonl"}, ("prompt", "completion")),
    "gft": ({**FLOOR, "groups": "rows.jsonl", "num_self": 2}, ("prompt", "responses")),
    "grpo": ({"prompts": "rows.jsonl", "num_generations": 4}, ("prompt",)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_two_processes(verb, save_checkpoint, write_jsonl, tmp_path):
    changes, columns = VERBS[verb]
    (tmp_path / "short.py").write_text(
        "def odd(completions, **_):\n    return [float(len(c) % 2) for c in completions]\n"
    )
    write_jsonl([{name: row[name] for name in columns} for row in ROWS], "rows.jsonl")
    flags = {
        "model_name_or_path": save_checkpoint("model"),
        "output_dir": "out",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": 2,
        **({} if verb == "sft" else {"reward": "short:odd", "max_completion_length": 4}),
        **changes,
    }
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    run = subprocess.run(
        [sys.executable, "-m", "entropyfloor.cli.main", verb, *words, *LAUNCH],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("Model saved to") == 1
    checkpoint = {path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= checkpoint
