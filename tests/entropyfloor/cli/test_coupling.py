import json

import pytest

from entropyfloor.cli.coupling import main


@pytest.fixture
def files(write_jsonl):
    rows = [{"prompt": f"{a}+1=", "completion": str(a + 1), "answer": str(a + 1)} for a in range(4)]
    return str(write_jsonl(rows, "rows.jsonl"))


def arguments(sft, rl, files, *more):
    return [
        *("--sft", str(sft), "--rl", str(rl), "--demos", files, "--prompts", files),
        *("--reward", "exact_match", "--max-new-tokens", "3", "--num_samples", "2"),
        *("--sft-samples", "2", "--no-progress", *more),
    ]


@pytest.mark.pictures
def test_end_to_end(save_checkpoint, files, tmp_path, capsys):
    sft, rl = save_checkpoint("sft"), save_checkpoint("rl", seed=1)
    out = tmp_path / "out"
    more = ["--output-dir", str(out), "--json", str(tmp_path / "o.json"), "--weight", "0.5"]
    assert main(arguments(sft, rl, files, *more)) == 0
    printed = capsys.readouterr().out
    assert "Coupling of SFT and RL: RL after SFT" in printed
    assert "and the SFT loss" in printed and "SFT loss rise is greatest at" in printed
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["schema"] == "entropyfloor.coupling"
    assert document["durations"][0]["weight"] == 0.5
    assert (out / "coupling.html").read_text().startswith("<!doctype html>")
    assert main(arguments(rl, sft, files, "--order", "rl-sft", "--gradient-rows", "0")) == 0
    assert "SFT after RL" in capsys.readouterr().out


def test_bad_usage(save_checkpoint, files):
    sft = save_checkpoint("sft")
    with pytest.raises(ValueError, match="--system would have no effect"):
        main(arguments(sft, sft, files, "--system", "be brief"))
    with pytest.raises(ValueError, match="is a directory; name the file to write"):
        main(arguments(sft, sft, files, "--json", str(sft)))
    with pytest.raises(ValueError, match="given more than once"):
        main(arguments(sft, sft, files))
