"""A run killed with SIGKILL and resumed decides, counts and logs as one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from grpo_runs import records, steps_of
from killed_run import run


def without_paths(result):
    return {name: value for name, value in result.items() if name != "message"}


@pytest.mark.timeout(300)
def test_resume_after_sigkill(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    program = str(Path(__file__).with_name("killed_run.py"))
    finished = subprocess.run(
        [sys.executable, program, str(killed), "5"], capture_output=True, text=True
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr[-3000:]
    assert [record["step"] for record in steps_of(killed)] == [1, 2, 3, 4, 5]
    kept = json.loads((killed / "checkpoint-4" / "trainer_state.json").read_text())
    remembered = kept["stateful_callbacks"]["CollapseMonitor"]["attributes"]["remembered"]
    assert [step for step, _ in remembered["readings"]] == [1, 2, 3, 4]
    assert remembered["counts"]["groups"] == 8
    with (killed / "collapse_monitor.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # and its last line was cut short

    trainer, resumed = run(killed, kill_at=-1, resume=True)
    assert trainer.state.global_step == resumed.stopped_at == 6
    assert resumed.decision.early == (2, pytest.approx(0.5))
    assert resumed.decision.drop == pytest.approx(0.64)

    _, unbroken = run(whole, kill_at=-1, resume=False)
    assert resumed.memory == unbroken.memory
    assert steps_of(killed) == steps_of(whole)
    assert [record["event"] for record in records(killed)].count("start") == 2
