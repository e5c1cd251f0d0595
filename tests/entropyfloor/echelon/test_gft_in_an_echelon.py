"""A loss with ``trainer: gft``: its teacher is a rung of the same recipe, after GRPO."""

import json
import shutil

import pytest

from entropyfloor.echelon import stages as stages_module
from entropyfloor.echelon.folder import RungKey, Stage
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.run import run_echelon
from entropyfloor.echelon.stages import Stages

GFT = {"trainer": "gft", "teacher": {"loss": "ce", "depth": 0.5}, "teacher_samples": 4}


def quiet(recipe, folder, **options):
    return run_echelon(recipe, folder, say=lambda line: None, progress=False, **options)


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    losses = {
        "ce": {"loss": "ce"},
        "gft": {**GFT, "num_self": 2},
        "alone": {"trainer": "gft", "num_teacher": 0, "num_self": 1},
    }
    grpo = {**tiny_recipe()["grpo"], "steps": 1}
    return load_recipe(tiny_recipe(losses=losses, screening=SCREENING, grpo=grpo))


SCREENING = {"num_samples": 4, "group_size": 4, "ks": [1, 4], "kl_to_base": True}


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gft")
    assert not quiet(recipe, folder, keep="nothing").failures
    return folder


def test_gft_is_measured_beside_sft(folder):
    content = json.loads((folder / "cells.json").read_text())
    rungs = [(cell["loss"], cell["depth"]) for cell in content["cells"]]
    assert rungs == [(x, d) for x in ("ce", "gft", "alone") for d in (0.5, 1.5)]
    for cell in content["cells"]:
        assert set(cell["after"]) == {"1"} and cell["before"]["kl_to_base"] > 0
    assert content["base"]["0"]["kl_to_base"] == pytest.approx(0.0, abs=1e-6)


def test_groups_hold_the_demonstrations_and_what_the_teacher_says_else(folder, recipe):
    file = Stages(recipe, folder).groups("gft", 0).path / "groups.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        expert, *teachers = row["responses"]
        assert expert == {"source": "expert", "completion": row["answer"], "reward": 1.0}
        assert all(each["reward"] == 0.0 for each in teachers)  # a right one would be the expert's
    settings = json.loads((file.parent / "groups.json").read_text())["settings"]
    assert "grpo/ce-seed-0-depth-0.5-" in json.dumps(settings)


def test_what_is_finished_is_not_asked_of_the_teacher_again(folder, recipe, monkeypatch):
    assert Stages(recipe, folder).missing() == []
    assert not list(folder.rglob("*.safetensors")) or list(folder.glob("base/*"))
    more = recipe.to_dict()
    more["losses"]["other"] = {**GFT, "num_self": 1}
    stages = Stages(load_recipe(more), folder)
    # The same groups: the teacher's weights are gone, and are not needed.
    assert (stages.groups("other", 0).path / "groups.jsonl").is_file()
    assert [s for s in stages.missing() if s.loss == "ce"] == []


def test_a_teacher_whose_weights_were_not_kept_is_trained_again(recipe, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    more = recipe.to_dict()
    more["losses"]["other"] = {**GFT, "num_self": 1, "teacher_samples": 2}
    stages = Stages(load_recipe(more), copy)
    teacher = Stage("rung", 0, "ce", 0.5)
    gft = Stage("sft", 0, "other")
    missing = stages.missing()
    assert {Stage("sft", 0, "ce"), teacher, gft} <= set(missing)
    assert Stage("rung", 0, "ce", 1.5) not in missing
    assert teacher in stages.needs(gft) and Stage("sft", 0, "ce") in stages.needs(teacher)
    assert not quiet(load_recipe(more), copy).failures
    assert stages.missing() == []


def test_a_failed_teacher_leaves_its_pupils_out(tiny_recipe, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no GRPO today")

    monkeypatch.setattr(stages_module, "train_grpo", broken)
    recipe = load_recipe(tiny_recipe(losses={"gft": GFT, "ce": {"loss": "ce"}}, depths=[0.5]))
    said = []
    result = run_echelon(recipe, tmp_path, retries=0, say=said.append, progress=False)
    assert [failure.stage for failure in result.failures] == ["rung-ce-seed-0-depth-0.5"]
    text = "\n".join(said)
    assert "left out sft-gft-seed-0" in text and "left out rung-gft-seed-0-depth-0.5" in text


def test_a_teacher_keeps_its_weights_while_a_pupil_waits(tiny_recipe, tmp_path, monkeypatch):
    """What failed after hours of GRPO is asked of the same weights again."""

    def broken(*_, **__):
        raise RuntimeError("no groups today")

    monkeypatch.setattr(stages_module, "build_response_groups", broken)
    grpo = {**tiny_recipe()["grpo"], "steps": 1}
    losses = {"gft": GFT, "ce": {"loss": "ce"}}
    recipe = load_recipe(tiny_recipe(losses=losses, depths=[0.5], grpo=grpo))
    (failure,) = quiet(recipe, tmp_path, retries=0).failures
    assert failure.stage == "rung-ce-seed-0-depth-0.5"
    stages = Stages(recipe, tmp_path)
    assert stages.grpo_is_complete(RungKey("ce", 0, 0.5))


def test_a_checkpoint_can_teach(tiny_recipe, folder, tmp_path):
    (model,) = (folder / "base").iterdir()
    losses = {"gft": {**GFT, "teacher": str(model)}}
    recipe = load_recipe(tiny_recipe(losses=losses, depths=[1], grpo=None))
    assert not quiet(recipe, tmp_path).failures
    assert (Stages(recipe, tmp_path).groups("gft", 0).path / "groups.jsonl").is_file()
