import json

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from entropyfloor.echelon import training_runs
from entropyfloor.echelon.recipe import GRPOTraining, load_recipe
from entropyfloor.echelon.sources import sources
from entropyfloor.echelon.training_runs import monitor_decision, train_grpo


class _KilledAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class _StopsAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def first_digit_is_even(completions, **_):
    """Right for about half of the rollouts of any model, so that there is a gradient."""
    return [float(text[:1] in set("02468")) for text in completions]


@pytest.fixture(scope="module")
def data(tiny_recipe):
    def make(**grpo):
        plan = {"steps": 4, "save_every": 2, "group_size": 4, "prompts_per_step": 4, **grpo}
        return sources(load_recipe(tiny_recipe(grpo=plan)), 0)

    return make


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    return data().model(tmp_path_factory.mktemp("start") / "small")


@pytest.fixture(autouse=True)
def _reward_with_a_gradient(monkeypatch):
    monkeypatch.setattr(training_runs, "reward_by_name", lambda name: first_digit_is_even)


@pytest.fixture(scope="module")
def whole(data, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_runs, "reward_by_name", lambda name: first_digit_is_even)
        return train_grpo(start, data(), folder, progress=False)


def same(one, other):
    one, other = (load_file(path / "model.safetensors") for path in (one, other))
    return all(one[name].equal(other[name]) for name in one)


def curve(folder):
    records = json.loads((folder / "curve.json").read_text())
    timings = ("step_time", "train_runtime")
    return [{k: v for k, v in record.items() if k not in timings} for record in records]


def test_a_run_leaves_checkpoints_and_a_curve(whole):
    assert list(whole) == [2, 4] and not same(whole[2], whole[4])
    records = curve(whole[2].parent)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all({"reward", "entropy"} <= set(record) for record in records)
    assert not list(whole[2].parent.rglob("optimizer.pt"))


def test_a_killed_run_goes_on_to_the_same_weights_and_curve(whole, data, start, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_grpo(start, data(), tmp_path, callbacks=[_KilledAt(3)], progress=False)
    half_written = tmp_path / "checkpoint-3"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"cut off")
    resumed = train_grpo(start, data(), tmp_path, progress=False)
    assert list(resumed) == [2, 4] and same(resumed[4], whole[4])
    assert curve(tmp_path) == curve(whole[4].parent)


def test_a_run_that_a_callback_stops_is_finished(data, start, tmp_path):
    for _ in range(2):
        train_grpo(start, data(), tmp_path, callbacks=[_StopsAt()], progress=False)
        assert [record["step"] for record in curve(tmp_path)] == [1]


def test_what_the_recipes_monitor_decided_is_kept(whole, data, start, tmp_path):
    assert monitor_decision(whole[2].parent) is None
    watched = train_grpo(start, data(monitor="warn"), tmp_path, progress=False)
    assert monitor_decision(tmp_path)["verdict"]
    assert same(watched[4], whole[4])  # it only watches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"monitor": "restore"}, "choose warn or stop"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GRPOTraining(**options)
