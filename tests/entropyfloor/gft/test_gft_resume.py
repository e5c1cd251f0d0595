"""A run killed with SIGKILL in the middle of an epoch and resumed is the run that was not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gft_killed_run import KILLED_AT, SAVED_AT, STEPS, run
from gft_runs import gft, group_rows, logged

from entropyfloor.gft.data import EpochSampler
from entropyfloor.gft.rows import REWARDS_FILE

WALL_CLOCK = ("step_time", "probe_share")


@pytest.mark.timeout(300)
def test_resume_after_sigkill(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    program = str(Path(__file__).with_name("gft_killed_run.py"))
    finished = subprocess.run(
        [sys.executable, program, str(killed)], capture_output=True, text=True
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr[-3000:]
    assert (killed / f"checkpoint-{SAVED_AT}").is_dir()
    kept = (killed / REWARDS_FILE).read_text()
    (killed / REWARDS_FILE).write_text(kept + '{"key": "4f')  # its last line was cut short

    resumed, asked_again = run(killed, kill_at=-1, resume=True)
    unbroken, asked = run(whole, kill_at=-1, resume=False)
    assert resumed.state.global_step == STEPS > KILLED_AT
    again, once = logged(resumed), logged(unbroken)
    assert len(again) == len(once) == STEPS
    for mine, other in zip(again, once, strict=True):
        assert {k: v for k, v in mine.items() if k not in WALL_CLOCK} == {
            k: v for k, v in other.items() if k not in WALL_CLOCK
        }
    for name, value in resumed.model.named_parameters():
        assert torch.equal(value, unbroken.model.get_parameter(name)), name
    # The rows' responses are not scored again: the resumed run asks for its policy samples only.
    assert len(asked.calls) == 1 + STEPS
    assert len(asked_again.calls) == STEPS - SAVED_AT
    assert asked_again.calls == asked.calls[1 + SAVED_AT :]
    assert (whole / REWARDS_FILE).read_text() == kept


def test_a_new_run_scores_the_rows_responses_anew(tmp_path):
    asked = []

    def reward(prompts, completion_ids, **_):
        asked.append(len(prompts))
        return [float(len(ids) % 2) for ids in completion_ids]

    for _ in range(2):
        gft(tmp_path, rows=group_rows(4)[1:], reward=reward, num_self=0).train()
    assert asked == [10, 10]


def test_resume_without_a_floor_in_the_checkpoint_is_refused(tmp_path):
    gft(tmp_path, save_strategy="steps", save_steps=1).train()
    trainer = gft(tmp_path, max_steps=2, entropy_floor=1.0, floor_probe_prompts=0)
    with pytest.raises(ValueError, match="was not trained with an entropy floor"):
        trainer.train(resume_from_checkpoint=True)


def test_the_order_of_an_epoch_follows_from_seed_and_epoch():
    now = [0]
    sampler = EpochSampler(50, seed=3, epoch=lambda: now[0])
    first = list(sampler)
    assert sorted(first) == list(range(50)) == list(EpochSampler(50, seed=None, epoch=lambda: 0))
    now[0] = 1
    second = list(sampler)
    assert second != first != list(EpochSampler(50, seed=4, epoch=lambda: 0))
    assert second == list(EpochSampler(50, seed=3, epoch=lambda: 1))
    assert len(sampler) == 50
