import json
import shutil

import pytest

from entropyfloor.cli.main import main
from entropyfloor.rollouts.prompts import PromptSet
from flat_calls import screen

PROMPTS = PromptSet(tuple({"prompt": f"{a}+1=", "answer": f"{a + 1}"} for a in range(5)), "sums")
SMALL = {"max_new_tokens": 4, "progress": False, "num_samples": 4, "group_size": 4}


def even_start(completion_ids, **_):
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


@pytest.fixture
def folders(save_checkpoint, tmp_path):
    found = {}
    for name, checkpoints in {"before": ["base"], "after": ["base", "tuned"]}.items():
        sources = [save_checkpoint(c, seed=len(c)) for c in checkpoints]
        found[name] = tmp_path / name
        screen(sources, prompts=PROMPTS, reward=even_start, output_dir=found[name], **SMALL)
    return found


def test_two_folders_and_one(folders, tmp_path, capsys):
    before, after = map(str, folders.values())
    out = {kind: tmp_path / f"o.{kind}" for kind in ("json", "html", "md", "png")}
    files = ["--json", str(out["json"]), "--html", str(out["html"])]
    files += ["--markdown", str(out["md"]), "--plot", str(out["png"])]
    assert main(["compare", before, f"{after}:tuned", *files]) == 0
    printed = capsys.readouterr().out
    assert "base → tuned" in printed and "pass@4" in printed and "still solves" in printed
    document = json.loads(out["json"].read_text())
    assert (document["schema"], document["schema_version"]) == ("entropyfloor.comparison", 1)
    (pair,) = document["comparisons"]
    assert [point["k"] for point in pair["band"]] == [1, 2, 3, 4]
    assert all(lost["prompt"].endswith("+1=") for lost in pair["coverage"]["lost"])
    assert out["png"].read_bytes()[:4] == b"\x89PNG"
    assert "base → tuned" in out["html"].read_text() and "→" in out["md"].read_text()
    # The same pair within one folder, and what `screen` wrote there.
    assert main(["compare", after, *files[:2]]) == 0
    assert json.loads(out["json"].read_text())["comparisons"] == [pair]
    written = json.loads((folders["after"] / "screening.json").read_text())
    assert written["comparisons"] == [pair]


def test_what_a_kill_left_is_read_from_the_rollouts(folders, tmp_path, capsys):
    before, after = folders.values()
    wanted = json.loads((after / "screening.json").read_text())["comparisons"]
    (after / "screening.json").unlink()
    assert main(["compare", str(before), f"{after}:tuned", "--json", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["comparisons"] == wanted


def test_equal_names_are_told_by_their_folders(folders, capsys):
    before, after = map(str, folders.values())
    assert main(["compare", before, f"{after}:base"]) == 0
    printed = capsys.readouterr().out
    assert f"{after}:base" in printed.replace("\n", "")


def test_what_cannot_be_compared_is_exit_code_two(folders, save_checkpoint, tmp_path, capsys):
    before, after = map(str, folders.values())
    other = tmp_path / "other"
    rows = PromptSet(PROMPTS.rows[:3], "three")
    model = save_checkpoint("third")
    screen([model], prompts=rows, reward=even_start, output_dir=other, **SMALL)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(f"{after}/screening.json", empty)
    cases = {
        "say which": [before, after],
        "is one checkpoint; give two folders": [before],
        "no checkpoint 'x' is screened; there are base": [before, f"{after}:x"],
        "not the same prompts": [before, str(other)],
        "takes one or two folders": [before, after, before],
        "holds no rollouts.json": [before, str(empty)],
        "holds no rollouts.json ": [before, str(tmp_path / "gone")],
        "a picture is written to": [before, f"{after}:tuned", "--plot", "x.doc"],
    }
    for words, arguments in cases.items():
        assert main(["compare", *arguments]) == 2, words
        assert words.strip() in capsys.readouterr().err
