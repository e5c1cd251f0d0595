import json
from pathlib import Path

import pytest

from entropyfloor.cli.main import main
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import check_sources, sources
from tiny_models import tiny_checkpoint

RECIPES = sorted((Path(__file__).parents[2] / "examples").glob("echelon_*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_valid(file):
    recipe = load_recipe(file)
    assert "ce" in recipe.losses
    assert any("entropy_floor" in options for options in recipe.losses.values())
    assert recipe.grpo is not None
    if recipe.data["task"] != "files":
        data = sources(recipe, recipe.seeds[0])
        if "/" not in recipe.model["name"]:  # a hub's model is not at hand here
            check_sources(data)
        test = {str(prompt) for prompt in data.test.prompts}
        assert not test & {str(row["prompt"]) for row in (*data.rows, *data.rl)}


def test_two_cores_has_what_the_comparison_is_about():
    (file,) = [f for f in RECIPES if f.stem == "echelon_two_cores"]
    recipe = load_recipe(file)
    assert len(recipe.losses) == 8 and len(recipe.depths) == 5 and len(recipe.seeds) == 3


def test_gft_is_there_with_its_ablations_and_one_teacher():
    (file,) = [f for f in RECIPES if f.stem == "echelon_gft"]
    recipe = load_recipe(file)
    teachers = {name: recipe.teacher(name) for name in recipe.losses if recipe.is_gft(name)}
    assert teachers.pop("gft-no-teacher") is None
    assert len(teachers) == 4 and len(set(teachers.values())) == 1
    assert recipe.losses["gft-no-advantages"]["advantages"] is False


def test_the_recipe_for_a_gpu_runs_with_a_tiny_model_in_its_place(tmp_path):
    """Every stage, on the settings that are not sizes."""
    model = tiny_checkpoint(max_position_embeddings=1024)
    for part in (model.model, model.tokenizer):
        part.save_pretrained(tmp_path / "model")
    sizes = {
        "model": {"name": str(tmp_path / "model")},
        "depths": [1],
        "seeds": [0],
        "data.train_problems": 20,
        "data.held_out_problems": 2,
        "data.rl_problems": 4,
        "sft.floor_probe_tokens": 4,
        "screening.max_new_tokens": 4,
        "grpo.steps": 1,
        "grpo.save_every": 1,
        "grpo.prompts_per_step": 4,
        "grpo.gradient_accumulation_steps": 1,
    }
    settings = [f"{name}={json.dumps(value)}" for name, value in sizes.items()]
    folder = tmp_path / "run"
    file = RECIPES[0].with_name("echelon_gsm_gpu.yaml")
    command = ["echelon", str(file), "--output_dir", str(folder), "--no_progress"]
    assert main([*command, "--set", *settings]) == 0
    cells = json.loads((folder / "cells.json").read_text())
    assert {cell["loss"] for cell in cells["cells"]} == {"ce", "floor-auto", "floor", "gem"}
