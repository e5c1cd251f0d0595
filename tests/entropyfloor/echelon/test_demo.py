import json
import shutil

import pytest

from entropyfloor.cli.main import main

pytestmark = pytest.mark.pictures
SMALL = "depths=[1,2] model.pretraining_steps=3 data.train_problems=6 data.held_out_problems=3"
SMALL += " data.pretraining_problems=40 sft.per_device_train_batch_size=8 threads=1"


def demo(folder, *words):
    return main(["demo", "--output-dir", str(folder), "--no-progress", *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(folder, "--quick", "--set", *SMALL.split()) == 0
    return folder


def test_base_and_every_depth_are_screened_and_compared(finished):
    text = (finished / "screening.md").read_text()
    names = ["base", "ce-depth-1", "ce-depth-2", "sed-depth-1", "sed-depth-2"]
    assert [name for name in names if f"| {name} |" in text] == names
    content = json.loads((finished / "cells.json").read_text())
    assert len(content["cells"]) == 4 and content["recipe"]["name"] == "demo-quick"
    assert (finished / "echelon.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((finished / "sft").iterdir())) == 2  # one run a loss leaves every depth


def test_a_second_call_trains_nothing_and_prints_the_same_table(finished, capsys):
    words = ["--quick", "--set", *SMALL.split()]
    assert demo(finished, *words) == 0
    shown = capsys.readouterr().out
    assert "0 stages are missing" in shown and "sed-depth-2" in shown


def test_it_starts_from_a_model_that_is_given(finished, tmp_path, capsys):
    (model,) = (finished / "base").iterdir()
    words = ["--quick", "--model", str(model), "--losses", "ce"]
    words += [
        "--set",
        "depths=[1]",
        "data.train_problems=4",
        "data.held_out_problems=2",
        "threads=1",
    ]
    assert demo(tmp_path / "demo", *words) == 0
    assert "ce-depth-1" in capsys.readouterr().out
    assert not (tmp_path / "demo" / "base").exists()

    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    assert demo(tmp_path / "other", "--model", str(bare)) == 2
    assert "no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--losses", "nope"], "the recipe has ce, sed"),
        (["--quick", "--set", "data.train_problems=9000"], "ask for fewer"),
        (["--model", "missing/nowhere/at-all"], "missing/nowhere/at-all"),
        (["--set", "screening.num_samples=4"], "below group_size"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(words, message, tmp_path, capsys):
    assert demo(tmp_path / "demo", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
