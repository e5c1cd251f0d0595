from pathlib import Path

import pytest

from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import check_sources, sources

RECIPES = sorted((Path(__file__).parents[2] / "examples").glob("echelon_*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_valid(file):
    recipe = load_recipe(file)
    assert "ce" in recipe.losses
    assert any("entropy_floor" in options for options in recipe.losses.values())
    assert recipe.grpo is not None
    if recipe.data["task"] != "files":
        found = sources(recipe, recipe.seeds[0])
        check_sources(found)
        test = {str(prompt) for prompt in found.test.prompts}
        assert not test & {str(row["prompt"]) for row in (*found.rows, *found.rl)}


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
