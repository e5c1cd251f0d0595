from pathlib import Path

import pytest

from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import sources

RECIPES = sorted((Path(__file__).parents[2] / "examples").glob("echelon_*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_valid(file):
    recipe = load_recipe(file)
    assert "ce" in recipe.losses
    assert any("entropy_floor" in options for options in recipe.losses.values())
    assert recipe.grpo is not None
    if recipe.data["task"] != "files":
        found = sources(recipe, recipe.seeds[0])
        test = {str(prompt) for prompt in found.test.prompts}
        assert not test & {str(row["prompt"]) for row in (*found.rows, *found.rl)}


def test_two_cores_has_what_the_comparison_is_about():
    (file,) = [f for f in RECIPES if f.stem == "echelon_two_cores"]
    recipe = load_recipe(file)
    assert len(recipe.losses) == 8 and len(recipe.depths) == 5 and len(recipe.seeds) == 3
