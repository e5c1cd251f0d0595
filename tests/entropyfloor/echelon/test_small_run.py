import json
from itertools import pairwise

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from entropyfloor.echelon import small_run as small_run_module
from entropyfloor.echelon.small_grpo import GRPOTraining, train_grpo
from entropyfloor.echelon.small_run import SmallRun, SmallSettings, _peak
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS
from entropyfloor.rl.collapse_monitor import CollapseMonitor
from entropyfloor.rollouts.rewards import exact_match

TINY = SmallSettings(
    pretraining_steps=3,
    pretraining_problems=130,
    demonstrations=12,
    rl_prompts=8,
    test_problems=6,
    samples=4,
    grpo=GRPOTraining(steps=2, save_every=1, group_size=4, prompts_per_step=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def finished(folder):
    run = SmallRun(folder, settings=TINY, progress=False)
    checkpoints = run.sft("ce", (1, 3))
    return run, checkpoints, run.cell(checkpoints[-1], "ce-depth-3")


def weights(directory):
    return load_file(directory / "model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_cell_is_measured_before_and_after_and_written(finished):
    run, checkpoints, cell = finished
    assert [path.name for path in checkpoints] == ["ce-depth-1", "ce-depth-3"]
    assert set(cell["after"]) == {"1", "2"}
    for measured in (cell["before"], *cell["after"].values()):
        assert set(measured["pass_at_k"]) == {"1", "4"}
        assert measured["entropy_nats"] > 0 and measured["held_out_loss"] > 0
    assert [record["step"] for record in cell["curve"]] == [1, 2]
    assert all({"reward", "entropy"} <= set(record) for record in cell["curve"])
    assert json.loads((run.folder / "cells" / "ce-depth-3.json").read_text()) == cell


def test_sft_goes_from_the_base_deeper_and_no_training_state_is_left(finished):
    run, (shallow, deep), _ = finished
    ladder = [run.base(), shallow, deep]
    assert not any(same(one, other) for one, other in pairwise(ladder))
    assert not list(run.folder.rglob("optimizer.pt"))


def test_a_second_call_does_nothing_again(finished, folder, monkeypatch):
    _, checkpoints, cell = finished
    for stage in ("screen", "train_grpo"):
        monkeypatch.setattr(small_run_module, stage, lambda *_, **__: pytest.fail("run again"))
    again = SmallRun(folder, settings=TINY, progress=False)
    assert again.sft("ce", (1, 3)) == checkpoints
    assert again.cell(checkpoints[-1], "ce-depth-3") == cell
    (again.folder / "cells" / "ce-depth-3.json").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(small_run_module, "screen", lambda *_, **__: pytest.fail("run again"))
    assert again.cell(checkpoints[-1], "ce-depth-3") == cell


def test_names_and_folders_stay_with_what_they_were_made_with(finished, folder):
    run, (shallow, _), _ = finished
    with pytest.raises(ValueError, match="samples: 4 then, 32 now"):
        SmallRun(folder)
    with pytest.raises(ValueError, match=r"other settings.*loss: 'ce' then, 'sed' now"):
        run.sft("sed", (1, 3), name="ce")
    for stage in (run.screen, run.grpo, run.cell):
        with pytest.raises(ValueError, match=r"other settings.*weights"):
            stage(shallow, "ce-depth-3")


def test_sft_takes_the_options_of_a_loss(folder):
    run = SmallRun(folder, settings=TINY, progress=False)
    (checkpoint,) = run.sft("ce", (1,), name="smooth", options={"smoothing": 0.3})
    record = json.loads((checkpoint / "entropyfloor.json").read_text())
    assert checkpoint.name == "smooth-depth-1" and record["options"]["smoothing"] == 0.3


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


def grpo(run, checkpoint, target, **options):
    return train_grpo(
        checkpoint,
        run.task.rl_dataset(),
        reward=first_digit_is_even,
        max_new_tokens=MAX_NEW_TOKENS,
        training=GRPOTraining(steps=4, save_every=2, group_size=4, prompts_per_step=4),
        seed=0,
        folder=target,
        progress=False,
        **options,
    )


def test_a_killed_grpo_run_goes_on_to_the_same_weights_and_curve(finished, tmp_path):
    run, checkpoints, _ = finished
    whole = grpo(run, checkpoints[-1], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        grpo(run, checkpoints[-1], tmp_path / "killed", callbacks=[_KilledAt(3)])
    half_written = tmp_path / "killed" / "checkpoint-3"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"cut off")
    resumed = grpo(run, checkpoints[-1], tmp_path / "killed")
    assert list(resumed.checkpoints) == list(whole.checkpoints) == [2, 4]
    assert not same(whole.checkpoints[2], whole.checkpoints[4])
    assert same(resumed.checkpoints[4], whole.checkpoints[4])
    timings = ("step_time", "train_runtime")
    for one, other in zip(resumed.curve, whole.curve, strict=True):
        assert {k: v for k, v in one.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }


def test_a_run_that_a_callback_stops_is_finished(finished, tmp_path):
    run, checkpoints, _ = finished
    stopped = grpo(run, checkpoints[-1], tmp_path, callbacks=[_StopsAt()])
    assert [record["step"] for record in stopped.curve] == [1]
    assert grpo(run, checkpoints[-1], tmp_path).curve == stopped.curve


def test_what_a_monitor_decided_is_in_the_result(finished, tmp_path):
    run, checkpoints, cell = finished
    assert cell["stage_two"] is None
    monitor = CollapseMonitor("stop", early_step=1, late_step=2)
    watched = grpo(run, checkpoints[-1], tmp_path, callbacks=[monitor])
    assert watched.stage_two is not None
    assert watched.stage_two["verdict"] == monitor.decision.verdict
    assert watched.stage_two["message"] == monitor.message
    assert grpo(run, checkpoints[-1], tmp_path).stage_two == watched.stage_two


def test_fewer_prompts_than_a_step_takes_are_refused(finished, tmp_path):
    run, checkpoints, _ = finished
    with pytest.raises(ValueError, match="a step takes 32 prompts and there are 8"):
        train_grpo(
            checkpoints[-1],
            run.task.rl_dataset(),
            reward=exact_match,
            max_new_tokens=MAX_NEW_TOKENS,
            training=GRPOTraining(),
            seed=0,
            folder=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GRPOTraining(**options)


def test_the_peak_is_per_measure_and_names_the_first_step_that_has_it():
    after = {
        "50": {"pass_at_k": {"1": 0.2, "10": 0.6}},
        "100": {"pass_at_k": {"1": 0.3, "10": 0.6}},
        "150": {"pass_at_k": {"1": 0.1, "10": 0.5}},
    }
    assert _peak(after) == {
        "pass_at_1": {"value": 0.3, "step": 100},
        "pass_at_10": {"value": 0.6, "step": 50},
    }
