import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from entropyfloor.cli.main import main

SMALL = ["--max-new-tokens", "6", "--num_samples", "4", "--group-size", "4", "--no-progress"]


@pytest.fixture
def prompts(write_jsonl):
    return str(write_jsonl([{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(5)]))


def test_end_to_end(save_checkpoint, prompts, tmp_path, capsys):
    out = {name: tmp_path / "out" / name for name in ("o.json", "o.png", "o.md", "o.html")}
    code = main(
        [
            "screen",
            str(save_checkpoint("wide")),
            str(save_checkpoint("narrow", peak=300.0)),
            "--prompts",
            prompts,
            "--reward",
            "exact_match",
            "--json",
            str(out["o.json"]),
            "--plot",
            str(out["o.png"]),
            "--html",
            str(out["o.html"]),
            "--markdown",
            str(out["o.md"]),
            *SMALL,
        ]
    )
    assert code == 3
    printed = capsys.readouterr().out
    assert "narrow: mean rollout entropy" in printed and "no room for" not in printed
    assert "best so far is wide: the only one that is undecided" in printed
    document = json.loads(out["o.json"].read_text())
    assert [c["flagged"] for c in document["checkpoints"]] == [False, True]
    assert document["settings"]["group_size"] == 4
    assert document["checkpoints"][0]["pass_at_k"].keys() == {"1", "2", "4"}
    assert out["o.png"].read_bytes()[:4] == b"\x89PNG"
    assert out["o.md"].read_text().startswith("| checkpoint | verdict | entropy (nats) |")
    assert out["o.html"].read_text().startswith("<!doctype html>")


def test_exit_code_is_zero_when_none_is_flagged(save_checkpoint, prompts):
    directory = str(save_checkpoint())
    assert main(["screen", directory, "--prompts", prompts, *SMALL]) == 0
    assert main(["screen", directory, "--prompts", prompts, "--tau-h", "9", *SMALL]) == 3


def test_fail_on_chooses(save_checkpoint, prompts):
    narrow = [
        str(save_checkpoint("narrow", peak=300.0)),
        *("--prompts", prompts, "--fail-on"),
    ]
    assert main(["screen", *SMALL, *narrow, "at-risk"]) == 3
    assert main(["screen", *SMALL, *narrow, "collapsed", "undecided"]) == 0
    assert main(["screen", *SMALL, *narrow, "none"]) == 0


def test_calibrate(tmp_path, capsys, save_checkpoint, prompts):
    csv = tmp_path / "outcomes.csv"
    rows = "".join(f"c{i},{i},{i / 10}\n" for i in range(1, 7))
    csv.write_text(f"checkpoint,score,entropy_nats\n{rows}", encoding="utf-8")
    assert main(["screen", "--calibrate", str(csv)]) == 0
    printed = capsys.readouterr().out
    assert "calibration on 6 checkpoints: tau_H = 0." in printed
    assert "entropy_nats: Spearman +1.00, p = 0.00278 (exact" in printed
    csv.write_text("checkpoint,score\nmodel,0.5\n", encoding="utf-8")
    arguments = [str(save_checkpoint()), "--prompts", prompts, "--calibrate", str(csv)]
    assert main(["screen", *arguments, *SMALL]) == 0
    assert "too little data to fit tau_H: 1 checkpoints" in capsys.readouterr().out


def test_an_output_folder_and_a_reasoning_gym_spec(save_checkpoint, tmp_path):
    for step in (10, 2):
        save_checkpoint(f"run/checkpoint-{step}")
    code = main(
        [
            "screen",
            str(tmp_path / "run"),
            "--json",
            str(tmp_path / "o.json"),
            "--chat",
            "--prompts",
            "reasoning_gym:chain_sum?size=3&seed=7",
            "--reward",
            "reasoning_gym",
            *SMALL,
        ]
    )
    document = json.loads((tmp_path / "o.json").read_text())
    assert code == 0  # three prompts decide nothing
    assert [c["name"] for c in document["checkpoints"]] == ["checkpoint-2", "checkpoint-10"]


def test_data_errors_are_exit_code_two(save_checkpoint, prompts, write_jsonl, tmp_path, capsys):
    good = str(save_checkpoint())
    empty = str(write_jsonl([], "empty.jsonl"))
    cases = {
        "no prompts at": [good, "--prompts", str(tmp_path / "none.jsonl")],
        "has no rows": [good, "--prompts", empty],
        "no checkpoint at": [str(tmp_path / "gone"), "--prompts", prompts],
        "pickle only": [str(save_checkpoint("bad", safe=False)), "--prompts", prompts],
        "unknown reward": [good, "--prompts", prompts, "--reward", "magic"],
        "draw at least 8": [
            good,
            "--prompts",
            prompts,
            "--reward",
            "exact_match",
            "--num_samples",
            "4",
            "--group-size",
            "8",
        ],
        "give checkpoints and --prompts": [good],
        "needs no model": [good, "--from-rollouts", str(tmp_path)],
        "holds no rollouts.json": ["--from-rollouts", str(tmp_path)],
        "--system would have no effect": [good, "--prompts", prompts, "--system", "x"],
        "is a directory": [good, "--prompts", prompts, "--json", str(tmp_path)],
    }
    for words, arguments in cases.items():
        assert main(["screen", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--prompts", "y", "--num_samples", "many"],
        ["x", "--prompts", "y", "--fail-on", "everything"],
    ],
)
def test_usage_errors_are_exit_code_two(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["screen", *arguments])
    assert exit_.value.code == 2


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom entropyfloor.cli.main import main\n"
        "try: main(['screen', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'trl', 'datasets', 'scipy.stats', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_the_page_on_screening_names_every_flag(capsys):
    page = (Path(__file__).parents[3] / "docs" / "screening.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["screen", "--help"])
    flags = set(re.findall(r"^  --(?:no_)?(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert {"num_samples", "greedy", "html"} <= flags
    assert not {f for f in flags if not re.search(rf"--(no_)?{f}(?![-\w])", page)}
