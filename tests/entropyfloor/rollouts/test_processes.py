"""Two processes (gloo, CPU) of ``accelerate launch`` screen as one does, to the last bit."""

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from entropyfloor.cli.main import main
from entropyfloor.rollouts.processes import Processes
from flat_calls import without_runtime

REWARD = """
def even(completion_ids, **_):
    return [float(ids[0] % 2 == 0) for ids in completion_ids]
"""
# Every case in one launch: starting costs seconds. A list of command lines comes as JSON.
PROGRAM = """
import json, os, sys
from entropyfloor import io
io.write_pictures = lambda files: [io.write_atomic(path, "a picture") for path in files]
from entropyfloor.cli.main import main
for arguments in json.loads(sys.argv[1]):
    code = main(["screen", *arguments])
    if code not in (0, 3):
        sys.exit(code)
sys.stdout.flush()
# Not sys.exit: gloo's threads have been seen to keep a finished process alive.
os._exit(0)
"""
SMALL = ["--reward", "even_reward:even", "--max-new-tokens", "6", "--num_samples", "4"]
SMALL += ["--group-size", "4", "--batch-size", "5", "--no-progress", "--device", "cpu"]


def command_lines(work):
    """Name -> arguments; each writes into ``work/name``."""
    wide, other = str(work / "wide"), str(work / "other")
    rows = str(work / "rows.jsonl")
    return {
        "whole": [wide, other, "--prompts", rows, "--base", wide, *SMALL],
        "resumed": [wide, other, "--prompts", rows, "--base", wide, *SMALL],
        "decided": [wide, "--prompts", rows, "--until-decided", *SMALL],
    }


def document(folder):
    return without_runtime(json.loads((folder / "screening.json").read_text()))


def kill(folder, keep):
    """Leave what a killed run leaves: ``keep`` batches of the first checkpoint, and half a one."""
    for file in folder.glob("screening.*"):
        file.unlink()
    for file in [*folder.glob("sums-*"), *folder.glob("rollouts-other*")]:
        file.unlink()
    for file in folder.glob("rollouts-wide*"):
        lines = file.read_bytes().splitlines(keepends=True)
        ends = [i for i, line in enumerate(lines) if b'"last_of_batch"' in line]
        whole = ends[keep - 1] + 1
        assert whole + 2 < len(lines), "there must be something to lose"
        file.write_bytes(b"".join(lines[: whole + 1]) + lines[whole + 1][:40])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """``{name: folder}`` of one process, the same of two, and what two printed."""
    work = tmp_path_factory.mktemp("work")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tiny_models import save_tiny

    for name, seed in (("wide", 0), ("other", 3)):
        save_tiny(work / name, seed=seed)
    rows = [{"prompt": f"{a}+{a * 37}=", "completion": str(a * 38)} for a in range(1, 13)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "even_reward.py").write_text(REWARD)
    (work / "program.py").write_text(PROGRAM)
    one, two = work / "one", work / "two"
    before = Path.cwd()
    os.chdir(work)  # where the reward's module is found
    try:
        torch.set_num_threads(1)
        for name in ("whole", "decided"):
            arguments = command_lines(work)[name]
            assert main(["screen", *arguments, "--output-dir", str(one / name)]) in (0, 3)
    finally:
        os.chdir(before)
        sys.modules.pop("even_reward", None)
    shutil.copytree(one / "whole", two / "resumed")
    kill(two / "resumed", keep=2)
    cases = [
        [*arguments, "--output-dir", str(two / name)]
        for name, arguments in command_lines(work).items()
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", "0", "program.py", json.dumps(cases)]
    path = os.pathsep.join([str(work), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        launch,
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return one, two, run.stdout


@pytest.mark.parametrize("name", ["whole", "decided"])
def test_the_same_report(folders, name):
    one, two, _ = folders
    assert document(two / name) == document(one / name)
    for suffix in ("md", "html", "png"):
        assert (two / name / f"screening.{suffix}").exists()


def test_held_out_loss_and_kl_are_shared_too(folders):
    one, two, _ = folders
    found = document(two / "whole")["checkpoints"][1]
    assert found["held_out_loss"] > 0.0 and found["kl_to_base"] > 0.0
    for name in ("wide", "other"):
        files = [folder / "whole" / f"sums-{name}.json" for folder in (one, two)]
        assert files[0].read_text() == files[1].read_text()


def rollouts_of(file):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(r["prompt_index"], r["sample_index"], r["greedy"]) for r in lines]


def test_each_process_writes_its_own_rollouts(folders):
    _, two, _ = folders
    first = rollouts_of(two / "whole" / "rollouts-wide.jsonl")
    second = rollouts_of(two / "whole" / "rollouts-wide@1.jsonl")
    assert abs(len(first) - len(second)) <= 5, "shared out evenly, up to one batch"
    assert len({*first, *second}) == len(first) + len(second) == 12 * (4 + 1)


def test_a_run_of_one_process_is_resumed_by_two(folders):
    one, two, _ = folders
    assert len(rollouts_of(two / "resumed" / "rollouts-wide.jsonl")) > 10
    assert (two / "resumed" / "rollouts-wide@1.jsonl").exists()
    assert document(two / "resumed") == document(one / "whole")


def test_a_run_of_two_processes_is_resumed_by_one(folders, tmp_path, monkeypatch):
    one, two, _ = folders
    shutil.copytree(two / "whole", tmp_path / "killed")
    kill(tmp_path / "killed", keep=3)
    work = one.parent
    monkeypatch.chdir(work)
    arguments = [*command_lines(work)["whole"], "--output-dir", str(tmp_path / "killed")]
    assert main(["screen", *arguments]) in (0, 3)
    assert document(tmp_path / "killed") == document(one / "whole")


def test_one_process_prints(folders):
    *_, printed = folders
    assert printed.count("Screening before RL") == 3


def test_shares_cover_everything_once():
    parts = [list(Processes(rank, 3).share(range(11))) for rank in range(3)]
    assert parts[0] == [0, 3, 6, 9] and sorted(chain(*parts)) == list(range(11))
    alone = Processes()
    assert alone.to_main("x") == ["x"] and alone.from_main("x") == "x" and alone.main


def test_each_process_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = Processes(rank=5, count=6, local_rank=1)
    assert second.local_device(torch.device("cuda")) == torch.device("cuda:1")
    assert second.local_device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert second.local_device(torch.device("cpu")) == torch.device("cpu")
    assert Processes().local_device(torch.device("cuda")) == torch.device("cuda")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own"):
        Processes(rank=2, count=3, local_rank=2).local_device(torch.device("cuda"))
