import json
import os
import random
from functools import partial

import numpy as np
import pytest

from entropyfloor.rollouts import engines
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rollout_store import RolloutStore
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.screening.from_rollouts import screen_from_rollouts
from flat_calls import even, screen, without_runtime
from killed_runs import kill_while_drawing

PROMPTS = PromptSet(
    tuple({"prompt": f"{a}+{a * 37}=", "answer": str(38 * a)} for a in range(1, 13)), "sums"
)
OPTIONS = {
    "max_new_tokens": 6,
    "progress": False,
    "num_samples": 4,
    "group_size": 4,
    "batch_size": 5,
}


def document(report):
    return without_runtime(report.to_dict())


def run(directories, folder, **options):
    return screen(
        directories, prompts=PROMPTS, reward=even, output_dir=folder, **{**OPTIONS, **options}
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_five_times_and_resumed(save_checkpoint, tmp_path):
    directories = [save_checkpoint("wide"), save_checkpoint("other", seed=3)]
    expected = document(run(directories, tmp_path / "undisturbed"))

    folder = tmp_path / "killed"
    rng = random.Random(0)
    for _ in range(5):
        run_it = partial(run, directories, folder)
        kill_while_drawing(run_it, folder, after=rng.uniform(0.0, 0.3))
    assert not (folder / "screening.json").exists()
    # A kill in the middle of a write leaves half a batch.
    torn = sorted(folder.glob("rollouts-*.jsonl"))[-1]
    torn.write_bytes(torn.read_bytes()[:-150])

    assert document(run(directories, folder)) == expected
    written = json.loads((folder / "screening.json").read_text())
    assert written["recommendation"] == expected["recommendation"]


def test_two_runs_at_once_count_a_rollout_once(save_checkpoint, tmp_path):
    before = document(run([save_checkpoint()], tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("rollouts-*.jsonl")
    file.write_bytes(2 * file.read_bytes())
    assert document(screen_from_rollouts(tmp_path / "out")) == before


def test_a_finished_run_needs_no_model(save_checkpoint, tmp_path, monkeypatch):
    directory = save_checkpoint()
    first = run([directory], tmp_path / "out")
    monkeypatch.setattr(engines, "load_checkpoint", lambda *_, **__: pytest.fail("loaded"))
    assert document(run([directory], tmp_path / "out")) == document(first)
    again = screen_from_rollouts(tmp_path / "out")
    assert document(again) == document(first)
    with pytest.raises(ValueError, match="temperature cannot be changed without drawing"):
        screen_from_rollouts(tmp_path / "out", temperature=0.5)
    strict = screen_from_rollouts(tmp_path / "out", tau_h=9.0, group_size=2, ks=[1, 3])
    assert strict.checkpoints[0].flagged
    assert strict.settings["group_size"] == 2
    assert set(strict.checkpoints[0].pass_at_k) == {1, 3}
    with pytest.raises(ValueError, match="draw at least 8 samples"):
        screen_from_rollouts(tmp_path / "out", group_size=8)


def test_reporting_leaves_half_a_batch_to_the_run_that_writes_it(save_checkpoint, tmp_path):
    run([save_checkpoint()], tmp_path / "out")
    file = tmp_path / "out/rollouts-model.jsonl"
    torn = file.read_bytes()[:-20]
    file.write_bytes(torn)
    screen_from_rollouts(tmp_path / "out")
    assert file.read_bytes() == torn


def test_names_that_differ_in_a_separator_have_their_own_files(tmp_path):
    a, b = (RolloutStore(tmp_path, name) for name in ("x/a_b", "x_a/b"))
    rollout = Rollout(0, 0, (5,), np.ones(1, np.float32), "t", False)
    a.append([rollout], [1.0])
    assert RolloutStore(tmp_path, "x/a_b").rewards == [1.0]
    assert RolloutStore(tmp_path, "x_a/b").rewards == [] == b.rewards


def test_more_samples_extend_what_is_there(save_checkpoint, tmp_path):
    directory = save_checkpoint()
    run([directory], tmp_path / "out")
    extended = run([directory], tmp_path / "out", num_samples=6)
    whole = run([directory], tmp_path / "whole", num_samples=6)
    assert extended.checkpoints[0].pass_at_k == whole.checkpoints[0].pass_at_k
    assert extended.checkpoints[0].entropy_nats == pytest.approx(
        whole.checkpoints[0].entropy_nats, rel=1e-6
    )
    lines = (tmp_path / "out/rollouts-model.jsonl").read_text().splitlines()
    assert len(lines) == 12 * (6 + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"temperature": 0.5}, "temperature: 1.0 then, 0.5 now"),
        ({"reward": "exact_match"}, "reward: 'even' then, 'exact_match' now"),
    ],
)
def test_other_settings_are_not_mixed(save_checkpoint, tmp_path, change, words):
    directory = save_checkpoint()
    run([directory], tmp_path / "out")
    with pytest.raises(ValueError, match=words):
        screen(
            [directory],
            prompts=PROMPTS,
            output_dir=tmp_path / "out",
            **{"reward": even, **OPTIONS, **change},
        )


def test_a_checkpoint_that_was_trained_on_is_not_mixed(save_checkpoint, tmp_path):
    run([save_checkpoint()], tmp_path / "out")
    with pytest.raises(ValueError, match="checkpoints: "):
        run([save_checkpoint(seed=4)], tmp_path / "out")


def test_rollouts_of_unknown_settings(tmp_path, save_checkpoint):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rollouts-model.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"no rollouts\.json"):
        run([save_checkpoint()], tmp_path / "out")
