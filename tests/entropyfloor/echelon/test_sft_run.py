import json

import pytest
import torch
from safetensors.torch import load_file

from entropyfloor.echelon import training_runs
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import sources
from entropyfloor.echelon.training_runs import _SaveDepths, mean_group_size, train_loss
from tiny_models import save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    save_tiny(directory)
    return directory


@pytest.fixture(scope="module")
def train(base):
    """Train SED to the given depths: two steps an epoch."""

    def run(folder, depths=(1, 3), validation=0, **changes):
        recipe = load_recipe(
            {
                "model": str(base),
                "data": {
                    "task": "worked_sums",
                    "train_problems": 8,
                    "solutions_per_problem": 1,
                    "validation_problems": validation,
                },
                "losses": {"sed": {"loss": "sed", **changes}},
                "depths": depths,
                "sft": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
            }
        )
        return train_loss(base, "sed", sources(recipe, 0), folder, progress=False)

    return run


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_leaves_one_loadable_directory_per_depth_and_nothing_else(undisturbed):
    assert [path.name for path in undisturbed] == ["sed-depth-1", "sed-depth-3"]
    assert names(undisturbed[0].parent) == ["sed-depth-1", "sed-depth-3"]
    for path in undisturbed:
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names(path))
        assert not [name for name in names(path) if name.endswith((".pt", ".bin", ".pth"))]
    assert not same(*undisturbed)


def test_what_is_finished_is_not_trained_again(undisturbed, train, monkeypatch):
    monkeypatch.setattr(training_runs, "_train", lambda *_, **__: pytest.fail("trained again"))
    assert train(undisturbed[0].parent) == undisturbed


def test_a_killed_run_goes_on_to_the_same_weights(undisturbed, train, tmp_path, monkeypatch):
    rename = _SaveDepths.on_save

    def killed_at_depth_3(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            raise KeyboardInterrupt
        rename(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_SaveDepths, "on_save", killed_at_depth_3)
        train(tmp_path)
    assert (tmp_path / "sed-depth-1").is_dir() and not (tmp_path / "sed-depth-3").exists()

    before = (tmp_path / "sed-depth-1" / "model.safetensors").stat().st_mtime_ns
    resumed = train(tmp_path)
    assert (resumed[0] / "model.safetensors").stat().st_mtime_ns == before
    assert same(resumed[0], undisturbed[0]) and same(resumed[1], undisturbed[1])
    assert names(tmp_path) == ["sed-depth-1", "sed-depth-3"]


def test_a_depth_is_what_a_run_of_that_length_ends_with(undisturbed, train, tmp_path):
    (only,) = train(tmp_path, depths=(1,))
    assert same(only, undisturbed[0])


def test_a_depth_may_end_within_an_epoch(undisturbed, train, tmp_path):
    # The same data order, saved after steps 1, 2, 5 and 6.
    depths = (0.5, 1, 2.6, 3)
    parts = train(tmp_path, depths=depths)
    assert [path.name for path in parts] == [f"sed-depth-{depth:g}" for depth in depths]
    assert same(parts[1], undisturbed[0]) and same(parts[3], undisturbed[1])
    assert not same(parts[2], parts[3])


def test_depths_of_one_and_the_same_step_are_refused(train, tmp_path):
    with pytest.raises(ValueError, match=r"sed: an epoch has 2 steps.*after steps 2 2"):
        train(tmp_path, depths=(1, 1.1))


def test_how_the_model_is_loaded_can_be_said(undisturbed, train, tmp_path):
    with pytest.raises(ValueError, match="attn_implementation"):
        train(tmp_path, model_init_kwargs={"attn_implementation": "none-of-them"})
    eager = train(tmp_path, model_init_kwargs={"attn_implementation": "eager"})
    for one, other in zip(eager, undisturbed, strict=True):
        one, other = weights(one), weights(other)
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_an_option_of_a_loss_reaches_the_run(train, tmp_path):
    (checkpoint,) = train(tmp_path, depths=(1,), lam=0.5)
    record = json.loads((checkpoint / "entropyfloor.json").read_text())
    assert record["options"]["lam"] == 0.5


@pytest.mark.parametrize(
    ("validation", "rows"),
    [(5, "5 rows of the evaluation set"), (0, "1 rows of the evaluation set")],
)
def test_what_an_auto_floor_is_read_off(train, tmp_path, validation, rows):
    floor = {"entropy_floor": "auto", "floor_probe_prompts": 0, "floor_probe_steps": 1}
    (only,) = train(tmp_path, depths=(1,), validation=validation, **floor)
    record = json.loads((only / "entropyfloor.json").read_text())["floor"]
    assert record["settings"]["held_out"] == rows
    assert [probe["step"] for probe in record["probes"]] == [0, 1, 2]


def test_a_group_has_as_many_responses_as_take_part():
    rows = [
        {"responses": [{"source": "expert"}, *[{"source": "teacher"}] * count]} for count in (1, 5)
    ]
    assert mean_group_size(rows, {"num_self": 4}) == 1 + (1 + 3) / 2 + 4
    assert mean_group_size(rows, {"num_teacher": 0, "num_self": 2}) == 3


def test_gft_at_a_depth_trains_on_as_many_responses_as_sft(tiny_recipe, base, tmp_path):
    recipe = load_recipe(
        tiny_recipe(
            losses={"gft": {"trainer": "gft", "num_teacher": 0, "num_self": 1}},
            data={"task": "small_sums", "test": 4, "demonstrations": 16, "pretraining": 130},
            depths=[2, 4],
            sft={"learning_rate": 1e-3, "per_device_train_batch_size": 8},
        )
    )
    data = sources(recipe, 0)
    start = data.model(tmp_path / "start")
    steps = []
    for checkpoint in train_loss(start, "gft", data, tmp_path, progress=False):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        steps.append(state["global_step"])
    # Groups of two, four prompts a step: 8 responses of 16 · depth.
    assert steps == [4, 8]
