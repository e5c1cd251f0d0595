"""``entropyfloor gft-groups``: from rows and a teacher to groups on disk and a table."""

import json

import pytest

from entropyfloor.cli.main import main

ROWS = [
    {"prompt": f"{i}+{i}=", "completion": str(2 * i), "answer": str(2 * i), "more": ["?", "!!"]}
    for i in range(4)
]


@pytest.fixture
def words(save_checkpoint, write_jsonl, tmp_path):
    words = ["gft-groups", str(save_checkpoint(peak=2.0)), "--prompts", str(write_jsonl(ROWS))]
    words += ["--output-dir", str(tmp_path / "out"), "--reward", "exact_match"]
    return [*words, "--max-new-tokens", "3", "--keep-truncated", "--no-progress", "--device", "cpu"]


def test_groups_table_and_json(words, write_jsonl, tmp_path, capsys):
    other = write_jsonl([{"prompt": "0+0=", "completion": "nought"}], "other.jsonl")
    argv = [*words, "--other", str(other), "--other-columns", "more", "--num_samples", "4"]
    target = tmp_path / "new" / "counts.json"
    assert main([*argv, "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["expert"].split("│")[2:-1]] == [
        *("4", "1.000", "1.000"),
        *("0", "0", "0", "4", "4"),
    ]
    assert [cell.strip() for cell in rows["other"].split("│")[2:-1]][::6] == ["9", "9"]
    assert "4 groups: in 4 some responses pass and some fail" in shown
    assert f"--groups {tmp_path / 'out' / 'groups.jsonl'} --reward exact_match" in shown
    groups = [json.loads(line) for line in (tmp_path / "out/groups.jsonl").read_text().splitlines()]
    assert [r["completion"] for r in groups[0]["responses"][:4]] == ["0", "?", "!!", "nought"]
    assert groups[0]["more"] == ["?", "!!"]
    document = json.loads(target.read_text())
    assert document == json.loads((tmp_path / "out" / "groups.json").read_text())
    assert document["settings"]["num_samples"] == 4
    assert document["sources"]["teacher"]["responses"] == 16


def test_chat(words, write_jsonl, tmp_path):
    other = write_jsonl([{"prompt": "1+1=", "completion": "II"}], "other.jsonl")
    assert main([*words, "--chat", "--system", "Add.", "--other", str(other)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/groups.jsonl").read_text().splitlines()]
    assert rows[1]["prompt"][0]["content"] == "Add."
    assert rows[1]["responses"][1]["completion"] == [{"role": "assistant", "content": "II"}]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--expert-column", "gold"], "no column 'gold'"),
        (["--system", "x"], "--system would have no effect"),
        (["--other", "nowhere.jsonl"], "no prompts at 'nowhere.jsonl'"),
        (["--num_samples", "0"], "num_samples must be at least 1"),
    ],
)
def test_errors_of_usage(words, more, said, capsys):
    assert main([*words, *more]) == 2
    assert said in capsys.readouterr().err


def test_other_settings_in_the_same_folder(words, capsys):
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "seed: 0 then, 1 now" in capsys.readouterr().err
    assert main(words) == 0  # the same again: nothing is drawn
