import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from entropyfloor.cli.echelon import RESULTS
from entropyfloor.cli.main import main
from entropyfloor.echelon import stages as stages_module
from entropyfloor.echelon.executors import SerialRunner, open_executor
from entropyfloor.echelon.folder import Stage
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.run import (
    echelon_status,
    finished_cells,
    report_of,
    run_echelon,
    screenings,
    take_in,
)
from entropyfloor.echelon.schedule import Schedule, only_one_run
from entropyfloor.echelon.stages import Stages
from entropyfloor.rollouts.prompts import load_prompts

FLOOR = {"loss": "ce", "entropy_floor": 2.0, "floor_probe_prompts": 2, "floor_probe_steps": 1}
FLOOR["floor_probe_tokens"] = 4


def numbers(folder):
    """Everything in cells.json but times."""
    content = json.loads((folder / "cells.json").read_text())
    for cell in content["cells"]:
        del cell["seconds"]
    return content


def quiet(recipe, folder, **options):
    return run_echelon(recipe, folder, say=lambda line: None, progress=False, **options)


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe(losses={"ce": {"loss": "ce"}, "floor": FLOOR}))


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = quiet(recipe, folder)
    assert not result.failures
    return folder


def test_every_cell_is_there_with_its_record(undisturbed, recipe):
    content = numbers(undisturbed)
    where = [(c["loss"], c["seed"], c["depth"]) for c in content["cells"]]
    assert where == [("ce", 0, 0.5), ("ce", 0, 1.5), ("floor", 0, 0.5), ("floor", 0, 1.5)]
    assert set(content["base"]) == {"0"}
    for cell in content["cells"]:
        assert set(cell["after"]) == {"1", "2"}
        assert cell["before"]["pass_at_k"].keys() == {"1", "4"}
    for file in (*RESULTS, "recipe.json"):
        assert (undisturbed / file).stat().st_size > 0
    (record,) = (undisturbed / "sft").glob("ce-seed-0-*/record.json")
    document = json.loads(record.read_text())
    assert document["seed"] == 0 and document["seconds"] > 0
    assert document["config"]["options"]["learning_rate"] == 1e-3
    assert document["versions"]["torch"] and document["hardware"]["cores"]


def test_only_sft_weights_stay_by_default(undisturbed):
    weights = {path.parent.name for path in undisturbed.rglob("model.safetensors")}
    assert {"ce-depth-0.5", "ce-depth-1.5", "floor-depth-0.5", "floor-depth-1.5"} < weights
    assert not any(name.startswith("checkpoint-") for name in weights)


def test_every_rung_stands_in_the_screening_with_its_interval(undisturbed, recipe):
    (report,) = screenings(Stages(recipe, undisturbed)).values()
    names = ["base", "ce-depth-0.5", "ce-depth-1.5", "floor-depth-0.5", "floor-depth-1.5"]
    assert [checkpoint.name for checkpoint in report.checkpoints] == names
    text = (undisturbed / "screening.md").read_text()
    for checkpoint, cell in zip(report.checkpoints[1:], numbers(undisturbed)["cells"], strict=True):
        assert checkpoint.entropy_nats == cell["before"]["entropy_nats"]
        low, high = checkpoint.intervals["entropy_nats"]
        shown = f"| {checkpoint.entropy_nats:.3f} ({low:.3f}–{high:.3f}) |"
        assert f"| {checkpoint.name} | " in text and shown in text


def test_the_data_are_there_for_other_commands(undisturbed):
    folder = undisturbed / "data" / "seed-0"
    assert len(load_prompts(folder / "held_out.jsonl").rows) == 12
    assert len(load_prompts(folder / "rl.jsonl").rows) == 16
    assert set(load_prompts(folder / "train.jsonl").rows[0]) == {"prompt", "completion", "answer"}


def test_a_finished_echelon_runs_nothing_again(undisturbed, recipe, monkeypatch):
    for stage in ("run_base", "run_sft", "run_rung"):
        monkeypatch.setattr(Stages, stage, lambda *_: pytest.fail("ran again"))
    before = numbers(undisturbed)
    assert Stages(recipe, undisturbed).missing() == []
    quiet(recipe, undisturbed)
    assert numbers(undisturbed) == before


@pytest.mark.slow
def test_workers_give_the_same_numbers(undisturbed, recipe, tmp_path):
    result = quiet(recipe, tmp_path, workers=2)
    assert not result.failures
    assert numbers(tmp_path) == numbers(undisturbed)


@pytest.mark.slow
def test_ray_gives_the_same_numbers(undisturbed, recipe, tmp_path):
    pytest.importorskip("ray")
    result = quiet(recipe, tmp_path, workers=2, executor="ray")
    assert not result.failures
    assert numbers(tmp_path) == numbers(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight starts of Python beside whatever else runs
def test_killed_at_random_it_ends_with_the_same_numbers(undisturbed, recipe, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "entropyfloor.cli.main", "echelon", str(file)]
    command += ["--output-dir", str(out), "--workers", "2", "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = sorted(random.Random(7).sample(range(1, 12), 3))  # of 13 measured checkpoints
    for measured in [*kills, None]:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            result = [*out.glob("screening/*.json"), *out.glob("evaluation/*.json")]
            if measured is not None and len(result) >= measured:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        assert process.returncode == (0 if measured is None else -signal.SIGKILL)
        time.sleep(1.5)  # its workers notice
    assert numbers(out) == numbers(undisturbed)


def counted(monkeypatch):
    ran = []
    for stage in ("train_loss", "train_grpo", "screen"):
        original = getattr(stages_module, stage)

        def count(*args, stage=stage, original=original, **kwargs):
            ran.append(stage)
            return original(*args, **kwargs)

        monkeypatch.setattr(stages_module, stage, count)
    return ran


def test_a_changed_setting_runs_only_what_depends_on_it(tiny_recipe, tmp_path, monkeypatch):
    short = {**tiny_recipe()["grpo"], "steps": 1}
    one = {"losses": {"ce": {"loss": "ce"}}, "depths": [1], "grpo": short}
    quiet(tiny_recipe(**one), tmp_path)
    ran = counted(monkeypatch)

    # The evaluation alone; its checkpoints were not kept, so GRPO runs, and nothing else.
    quiet(tiny_recipe(**one, evaluation={"num_samples": 8}), tmp_path)
    assert ran == ["train_grpo", "screen"]
    ran.clear()

    quiet(tiny_recipe(**{**one, "grpo": {**short, "learning_rate": 1e-4}}), tmp_path)
    assert ran == ["train_grpo", "screen"]
    ran.clear()

    # Another loss leaves those that are there alone: one SFT run, its screening and its GRPO.
    more = {**one, "losses": {"ce": {"loss": "ce"}, "gem": {"loss": "gem"}}}
    quiet(tiny_recipe(**more), tmp_path)
    assert ran == ["train_loss", "screen", "train_grpo", "screen"]
    ran.clear()

    # And the first recipe is still complete.
    quiet(tiny_recipe(**one), tmp_path)
    assert ran == []


def test_weights_that_were_not_kept_come_back_when_they_are_needed(
    tiny_recipe, tmp_path, monkeypatch
):
    one = {"depths": [0.5, 1], "grpo": {**tiny_recipe()["grpo"], "steps": 1}}
    quiet(tiny_recipe(**{**one, "grpo": None}), tmp_path, keep="nothing")
    assert not list((tmp_path / "sft").rglob("*.safetensors"))
    before = numbers(tmp_path)["cells"]
    ran = counted(monkeypatch)
    quiet(tiny_recipe(**one), tmp_path, keep="all")
    assert ran.count("train_loss") == 1 and ran.count("train_grpo") == 2
    assert len(list((tmp_path / "grpo").rglob("model.safetensors"))) == 2
    after = numbers(tmp_path)["cells"]
    assert [c["before"] for c in after] == [c["before"] for c in before]


@pytest.mark.slow
def test_adapters_go_through_every_stage(tiny_recipe, tmp_path):
    lora = {"r": 2, "target_modules": ["c_attn", "wte"]}
    result = quiet(tiny_recipe(peft=lora, depths=[1]), tmp_path, keep="all")
    assert not result.failures
    (rung,) = (tmp_path / "sft").rglob("ce-depth-1")
    assert (rung / "adapter_model.safetensors").is_file()
    assert not (rung / "model.safetensors").exists()
    assert len(list((tmp_path / "grpo").rglob("checkpoint-*/adapter_model.safetensors"))) == 2
    (cell,) = numbers(tmp_path)["cells"]
    assert set(cell["after"]) == {"1", "2"}


def test_a_stage_that_fails_is_tried_again_then_named(tiny_recipe, tmp_path, monkeypatch, capsys):
    recipe = load_recipe(tiny_recipe(depths=[1], grpo=None, losses={"ce": {}, "gem": {}}))
    tries = []
    original = Stages.run_sft

    def fails_for_gem(self, loss, seed):
        tries.append(loss)
        if loss == "gem":
            raise RuntimeError("out of memory")
        original(self, loss, seed)

    monkeypatch.setattr(Stages, "run_sft", fails_for_gem)
    events = []
    stages = Stages(recipe, tmp_path)
    schedule = Schedule(
        stages, SerialRunner(1), retries=2, on_event=lambda *event: events.append(event)
    )
    (failure,) = schedule.run()
    assert tries == ["ce", "gem", "gem", "gem"]
    assert failure.stage == "sft-gem-seed-0" and "out of memory" in failure.message
    assert ("left out", Stage("rung", 0, "gem", 1.0), "sft-gem-seed-0 failed") in events
    assert [cell["loss"] for cell in finished_cells(stages)] == ["ce"]

    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert main(["echelon", "status", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 cells" in shown and "out of memory" in shown
    states = {c["loss"]: c["state"] for c in echelon_status(tmp_path)["cells"]}
    assert states == {"ce": "done", "gem": "failed"}

    monkeypatch.setattr(Stages, "run_sft", original)
    assert not quiet(recipe, tmp_path).failures
    assert echelon_status(tmp_path)["failures"] == []


def test_a_worker_that_dies_is_replaced(tmp_path):
    runner = open_executor("processes", workers=1, threads=1, gpus=0)
    try:
        with pytest.raises(Exception, match="terminated abruptly"):
            runner.submit(os._exit, 3).result(timeout=60)
        assert runner.submit(abs, -3).result(timeout=60) == 3
    finally:
        runner.close()


def test_two_runs_do_not_share_a_folder(tiny_recipe, tmp_path):
    lock = only_one_run(tmp_path)
    try:
        with pytest.raises(ValueError, match="another echelon is running"):
            quiet(tiny_recipe(), tmp_path)
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "serial", "workers": 2}, "serial. has one worker"),
        ({"executor": "slurm"}, "choose one of serial, processes, ray"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"keep": "some"}, "choose one of rungs, all, nothing"),
        ({"retries": -1}, "retries must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(tiny_recipe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(tiny_recipe(), tmp_path, **options)


def test_status_of_a_folder_without_an_echelon(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no echelon"):
        echelon_status(tmp_path)
    for content, words in (("[]", "is not a mapping of settings"), ("{", "is not JSON")):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(ValueError, match=rf"recipe\.json {words}"):
            echelon_status(tmp_path)


def test_a_cell_that_is_none_is_named(tiny_recipe, tmp_path):
    cells = tmp_path / "cells.json"
    cells.write_text(json.dumps({"recipe": tiny_recipe(), "base": {}, "cells": ["ce"]}))
    with pytest.raises(ValueError, match="a cell has loss, seed, depth and before; got 'ce'"):
        report_of(cells, tmp_path)


def test_the_command_runs_part_of_a_recipe_and_says_how_far_it_is(tiny_recipe, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    two = {"ce": {"loss": "ce"}, "gem": {"loss": "gem"}}
    file.write_text(yaml.safe_dump(tiny_recipe(losses=two, depths=[1])))
    out = str(tmp_path / "out")
    options = ["--losses", "ce", "--seeds", "3", "--no-grpo", "--no-progress"]
    options += ["--set", "data.test=8"]
    assert main(["echelon", str(file), "--output-dir", out, *options]) == 0
    assert "1 losses × 1 depths × 1 seeds = 1 cells" in capsys.readouterr().out
    assert main(["echelon", "status", out, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["done"], status["total"], status["running"]) == (1, 1, False)
    assert status["cells"][0]["seed"] == 3
    for words, message in [
        (["--losses", "sed"], "the recipe has ce, gem"),
        (["--set", "data.tests=3"], "no setting 'tests'"),
        (["--set", "depths"], "write KEY=VALUE"),
        (["--set", "name.first=x"], "no settings inside it"),
        (["--set", "depths=[1"], "is not YAML"),
        (["--set", "losses=[ce]", "--losses", "ce"], "losses must be a mapping"),
    ]:
        assert main(["echelon", str(file), "--output-dir", out, *words]) == 2
        assert message in capsys.readouterr().err
    assert len(load_prompts(tmp_path / "out" / "data" / "seed-3" / "held_out.jsonl").rows) == 8


def test_what_another_run_finished_is_not_run_again(undisturbed, recipe, tiny_recipe, tmp_path):
    """Its cells.json is enough; a recipe with other losses, under another name, takes what fits."""
    lines = []
    take_in(tmp_path / "again", [undisturbed / "cells.json"])
    run_echelon(recipe, tmp_path / "again", progress=False, say=lines.append)
    assert "; 0 stages are missing" in lines[0]
    assert not (tmp_path / "again" / "base").exists()
    both = [numbers(folder) for folder in (undisturbed, tmp_path / "again")]
    assert both[0] == both[1]
    other = tiny_recipe(losses={"plain": {"loss": "ce"}, "sed": {"loss": "sed"}}, name="other")
    stages = Stages(load_recipe(other), tmp_path / "again")
    missing = [stage.name for stage in stages.missing()]
    assert missing == ["sft-sed-seed-0", "rung-sed-seed-0-depth-1.5", "rung-sed-seed-0-depth-0.5"]
    harder = load_recipe({**other, "grpo": {**other["grpo"], "learning_rate": 1e-4}})
    assert len(Stages(harder, tmp_path / "again").missing()) == 2 + 4


@pytest.mark.pictures
def test_a_report_is_drawn_anew_from_its_cells(undisturbed, tmp_path, capsys):
    packed = tmp_path / "cells.json.gz"
    packed.write_bytes(gzip.compress((undisturbed / "cells.json").read_bytes()))
    command = ["echelon", "report", str(packed), "--output_dir", str(tmp_path)]
    assert main(command) == 0
    for name in ("echelon.json", "echelon.md"):
        assert (tmp_path / name).read_text() == (undisturbed / name).read_text()
    assert (tmp_path / "echelon.png").stat().st_size > 10_000
    assert "Before RL" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "cut.json.gz").write_bytes(packed.read_bytes()[:99])
    for file in ("other.json", "cut.json", "cut.json.gz", "none.json"):
        assert main(["echelon", "report", str(tmp_path / file)]) == 2
        words = "there is no file" if file == "none.json" else "is not the cells.json"
        assert words in capsys.readouterr().err
