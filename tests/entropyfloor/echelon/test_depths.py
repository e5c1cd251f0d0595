import pytest
import torch
from safetensors.torch import load_file

from entropyfloor.echelon import depths as depths_module
from entropyfloor.echelon.depths import (
    DepthTraining,
    _SaveDepths,
    depth_of,
    train_depths,
)
from entropyfloor.echelon.tasks import sum_task
from tiny_models import tiny_model, tiny_tokenizer

TRAINING = DepthTraining(depths=(1, 3), learning_rate=1e-3, batch_size=4, bf16=False, seed=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def rows():
    task = sum_task(train_problems=8, held_out_problems=2, digits=1, subtraction=True, seed=0)
    return task.train_rows(solutions_per_problem=1, seed=0)


@pytest.fixture(scope="module")
def undisturbed(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train_depths(base, rows, loss="sed", training=TRAINING, folder=folder)


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_leaves_one_loadable_directory_per_depth_and_nothing_else(undisturbed, base):
    assert [path.name for path in undisturbed] == ["sed-depth-1", "sed-depth-3"]
    assert sorted(path.name for path in undisturbed[0].parent.iterdir()) == [
        "sed-depth-1",
        "sed-depth-3",
    ]
    for path in undisturbed:
        files = {file.name for file in path.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
        assert not [name for name in files if name.endswith((".pt", ".bin", ".pth"))]
    first, last = (weights(path) for path in undisturbed)
    assert not all(first[name].equal(last[name]) for name in first)


def test_what_is_finished_is_not_trained_again(undisturbed, base, rows, monkeypatch):
    monkeypatch.setattr(depths_module, "_train", lambda *_, **__: pytest.fail("trained again"))
    again = train_depths(base, rows, loss="sed", training=TRAINING, folder=undisturbed[0].parent)
    assert again == undisturbed


def test_a_killed_run_goes_on_to_the_same_weights(undisturbed, base, rows, tmp_path, monkeypatch):
    rename = _SaveDepths.on_save

    def killed_at_depth_3(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            raise KeyboardInterrupt
        rename(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_SaveDepths, "on_save", killed_at_depth_3)
        train_depths(base, rows, loss="sed", training=TRAINING, folder=tmp_path)
    assert (tmp_path / "sed-depth-1").is_dir() and not (tmp_path / "sed-depth-3").exists()

    before = (tmp_path / "sed-depth-1" / "model.safetensors").stat().st_mtime_ns
    resumed = train_depths(base, rows, loss="sed", training=TRAINING, folder=tmp_path)
    assert (resumed[0] / "model.safetensors").stat().st_mtime_ns == before
    assert_same_weights(resumed[0], undisturbed[0])
    assert_same_weights(resumed[1], undisturbed[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sed-depth-1", "sed-depth-3"]


def test_a_depth_is_what_a_run_of_that_length_ends_with(undisturbed, base, rows, tmp_path):
    short = DepthTraining(depths=(1,), learning_rate=1e-3, batch_size=4, bf16=False, seed=0)
    (only,) = train_depths(base, rows, loss="sed", training=short, folder=tmp_path)
    assert_same_weights(only, undisturbed[0])


def test_a_depth_may_end_within_an_epoch(undisturbed, base, rows, tmp_path):
    # Two steps per epoch: the same data order, saved after steps 1, 2, 5 and 6.
    depths = (0.5, 1, 2.6, 3)
    parts = DepthTraining(depths=depths, learning_rate=1e-3, batch_size=4, bf16=False, seed=0)
    found = train_depths(base, rows, loss="sed", training=parts, folder=tmp_path)
    assert [path.name for path in found] == [f"sed-depth-{depth:g}" for depth in depths]
    assert_same_weights(found[1], undisturbed[0])
    assert_same_weights(found[3], undisturbed[1])
    assert not all(
        value.equal(weights(found[2])[name]) for name, value in weights(found[3]).items()
    )


def test_depths_of_one_and_the_same_step_are_refused(base, rows, tmp_path):
    same = DepthTraining(depths=(1, 1.1), learning_rate=1e-3, batch_size=4, bf16=False, seed=0)
    with pytest.raises(ValueError, match=r"an epoch has 2 steps.*after steps 2 2"):
        train_depths(base, rows, loss="sed", training=same, folder=tmp_path)


@pytest.mark.parametrize("depths", [(), (0, 1), (2, 1), (1, 1), (float("nan"),)])
def test_depths_must_ascend_from_above_zero(depths):
    with pytest.raises(ValueError, match="ascending order"):
        DepthTraining(depths=depths, learning_rate=1e-3, batch_size=4, bf16=False, seed=0)


def test_a_checkpoint_name_says_its_loss_and_depth():
    assert depth_of("entropy_bonus-depth-12") == ("entropy_bonus", 12)
    assert depth_of("ce-depth-1.9") == ("ce", 1.9)
    assert depth_of("base") == ("base", 0)


def test_how_the_model_is_loaded_can_be_said(base, rows, undisturbed, tmp_path):
    def train(**loading):
        return train_depths(
            base,
            rows,
            loss="sed",
            training=TRAINING,
            folder=tmp_path / loading["attn_implementation"],
            options={"model_init_kwargs": loading},
        )

    with pytest.raises(ValueError, match="attn_implementation"):
        train(attn_implementation="none-of-them")
    for one, other in zip(train(attn_implementation="eager"), undisturbed, strict=True):
        one, other = weights(one), weights(other)
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
