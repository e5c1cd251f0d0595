import json
import shutil

import pytest

from entropyfloor.cli.main import main
from entropyfloor.echelon import demo as demo_module
from entropyfloor.echelon import depths as depths_module
from entropyfloor.echelon.demo import DemoSettings, run_demo

SMALL = DemoSettings.for_quick(
    depths=(1, 2), train_problems=6, eval_prompts=3, pretraining_steps=3, batch_size=8
)
NAMES = ["base", "ce-depth-1", "ce-depth-2", "sed-depth-1", "sed-depth-2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return run_demo(SMALL, folder, say=lambda line: None, progress=False)


def test_screens_the_base_and_every_depth_and_writes_the_results(finished):
    assert [checkpoint.name for checkpoint in finished.report.checkpoints] == NAMES
    table = json.loads((finished.folder / "table.json").read_text())
    assert [checkpoint["name"] for checkpoint in table["checkpoints"]] == NAMES
    assert table["demo"]["depths"] == [1, 2]
    assert table["conclusions"] == list(finished.conclusions)
    assert table["seconds"].keys() >= {"model", "train ce", "train sed", "screen base"}
    text = (finished.folder / "table.md").read_text()
    assert all(f"| {name} |" in text for name in NAMES)
    assert (finished.folder / "depths.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_and_screens_nothing(finished, monkeypatch):
    monkeypatch.setattr(depths_module, "_train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(demo_module, "screen", lambda *_, **__: pytest.fail("screened again"))
    again = run_demo(SMALL, finished.folder, say=lambda line: None, progress=False)
    assert again.report.to_dict() == finished.report.to_dict()
    assert again.seconds == finished.seconds


def test_goes_on_at_the_first_stage_that_is_missing(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "screening" / "sed-depth-2")
    (folder / "screening" / "ce-depth-1" / "screening.json").write_text('{"checkpo')
    (folder / "table.json").unlink()
    monkeypatch.setattr(depths_module, "_train", lambda *_, **__: pytest.fail("trained again"))
    screened = []
    real = demo_module.screen

    def counting(checkpoints, **options):
        screened.extend(path.name for path in checkpoints)
        return real(checkpoints, **options)

    monkeypatch.setattr(demo_module, "screen", counting)
    again = run_demo(SMALL, folder, say=lambda line: None, progress=False)
    assert screened == ["ce-depth-1", "sed-depth-2"]
    numbers = [
        [(c.name, c.entropy_nats, c.pass_at_k, c.intervals) for c in result.report.checkpoints]
        for result in (again, finished)
    ]
    assert numbers[0] == numbers[1]


def test_a_folder_of_other_settings_is_refused(finished):
    other = DemoSettings.for_quick(
        depths=(1, 2), train_problems=6, eval_prompts=3, pretraining_steps=3, batch_size=8, seed=1
    )
    with pytest.raises(ValueError, match=r"seed: 0 then, 1 now.*--output-dir"):
        run_demo(other, finished.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ("ce", "nope")}, "unknown loss 'nope'"),
        ({"losses": ("ce", "ce")}, "none twice"),
        ({"losses": ()}, "at least one loss"),
        ({"depths": (2, 1)}, "ascending order"),
        ({"samples": 4}, "samples must be at least 8"),
        ({"solutions_per_problem": 0}, "solutions_per_problem must be at least 1"),
        ({"seed": -1}, "seed must be 0 or positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**options)


def test_the_command_reports_bad_input_before_it_writes_anything(tmp_path, capsys):
    folder = tmp_path / "demo"
    for arguments, message in [
        (["--losses", "nope"], "unknown loss"),
        (["--quick", "--train-problems", "9000"], "ask for fewer"),
        (["--model", str(tmp_path / "missing")], "missing"),
    ]:
        assert main(["demo", "--output-dir", str(folder), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()


def test_a_model_without_chat_template_is_refused(finished, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(finished.folder / "base", bare)
    (bare / "chat_template.jinja").unlink()
    settings = DemoSettings(model=str(bare))
    with pytest.raises(ValueError, match="no chat template"):
        run_demo(settings, tmp_path / "demo")


def test_the_command_starts_from_a_model_that_is_given(finished, tmp_path, capsys):
    folder = tmp_path / "demo"
    options = "--quick --losses ce --depths 1 --train-problems 4 --eval-prompts 2 --samples 8"
    model = str(finished.folder / "base")
    assert main(["demo", "--model", model, "--output-dir", str(folder), *options.split()]) == 0
    assert "ce-depth-1" in capsys.readouterr().out
    assert not (folder / "base").exists()
