"""The calibration band: exact passes, resumed to the bit, refused with a histogram when empty."""

import json

import pytest

from entropyfloor.cli.main import main
from entropyfloor.rl.band import band_edges
from entropyfloor.rollouts import draw, engines
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from flat_calls import calibration_band

PROMPTS = PromptSet(tuple({"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(6)))


def even_length(completions, **_):
    return [float(len(text) % 2 == 0) for text in completions]


def by_prompt(prompts, completions, **_):
    """Never for 0, always for 1, by chance for the others; not applicable to 5."""
    rewards = []
    for prompt, text in zip(prompts, completions, strict=True):
        fixed = {"0+0=": 0.0, "1+1=": 1.0, "5+5=": None}
        rewards.append(fixed.get(prompt, float(len(text) % 2 == 0)))
    return rewards


@pytest.fixture
def arguments(save_checkpoint, tmp_path):
    return {
        "checkpoint": save_checkpoint(),
        "prompts": PROMPTS,
        "reward": by_prompt,
        "output_dir": tmp_path / "band",
        "num_samples": 8,
        "max_new_tokens": 6,
        "progress": False,
        "device": "cpu",
    }


def test_passes_and_rows(arguments):
    band = calibration_band(**arguments)
    assert (band.lowest, band.highest) == (1, 7)
    assert band.passes[0] == 0
    assert band.passes[1] == 8
    assert band.passes[5] is None
    middle = [row for row in (2, 3, 4) if 1 <= band.passes[row] <= 7]
    assert band.kept == middle != []
    # By hand, from the rollouts on disk.
    lines = (band.folder / "rollouts-model-00000.jsonl").read_text().splitlines()
    rollouts = [json.loads(line) for line in lines]
    for row in (2, 3, 4):
        texts = [r["text"] for r in rollouts if r["prompt_index"] == row]
        assert len(texts) == 8
        assert band.passes[row] == sum(len(text) % 2 == 0 for text in texts)
    rows = [json.loads(line) for line in band.path.read_text().splitlines()]
    assert rows == band.rows()
    assert rows[0]["answer"] == str(2 * middle[0])
    assert rows[0]["band_passes"] == band.passes[middle[0]]
    assert rows[0]["band_samples"] == 8
    assert len(load_prompts(band.path)) == len(middle)
    document = json.loads((band.folder / "band.json").read_text())
    assert document["passes"] == list(band.passes)
    assert document["settings"]["reward"] == "by_prompt"


def test_blocks_change_nothing(arguments, tmp_path, monkeypatch):
    whole = calibration_band(**arguments)
    monkeypatch.setattr(draw, "BLOCK", 2)
    parts = calibration_band(**{**arguments, "output_dir": tmp_path / "parts"})
    assert parts.passes == whole.passes
    assert len(list(parts.folder.glob("rollouts-*.jsonl"))) == 3


def test_resumes_and_extends(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(draw, "BLOCK", 2)
    expected = calibration_band(**{**arguments, "output_dir": tmp_path / "once"})
    calls = []

    def dies(completions, **keywords):
        calls.append(len(completions))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return by_prompt(completions=completions, **keywords)

    dies.__name__ = "by_prompt"
    with pytest.raises(KeyboardInterrupt):
        calibration_band(**{**arguments, "reward": dies})
    drawn = []

    def counted(completions, **keywords):
        drawn.append(len(completions))
        return by_prompt(completions=completions, **keywords)

    counted.__name__ = "by_prompt"
    resumed = calibration_band(**{**arguments, "reward": counted})
    assert resumed.passes == expected.passes
    assert sum(drawn) == 6 * 8 - 16
    again = calibration_band(**{**arguments, "reward": counted, "lowest": 0})
    assert sum(drawn) == 6 * 8 - 16  # nothing was drawn anew
    assert again.kept[0] == 0
    more = calibration_band(**{**arguments, "reward": counted, "num_samples": 10})
    assert sum(drawn) == 6 * 8 - 16 + 6 * 2
    assert more.num_samples == 10


def test_other_settings_in_the_same_folder_are_refused(arguments):
    calibration_band(**arguments)
    with pytest.raises(ValueError, match="drawn with other settings"):
        calibration_band(**{**arguments, "temperature": 0.5})


def test_nothing_left_says_so_with_the_histogram(arguments):
    def never(completions, **_):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="no prompt of rows is in the band") as error:
        calibration_band(**{**arguments, "reward": never})
    assert "     0      6   ████" in str(error.value)
    assert "kept 0 of 6 prompts, 1 to 7 passes" in str(error.value)
    document = json.loads((arguments["output_dir"] / "band.json").read_text())
    assert document["passes"] == [0] * 6


def test_histogram(arguments):
    text = calibration_band(**arguments).histogram(width=4)
    lines = text.splitlines()
    assert lines[0] == "passes of 8, prompts"
    assert len(lines) == 1 + 9 + 2
    assert lines[1].split()[:2] == ["0", "1"]
    assert "│" not in lines[1] and "│" in lines[2] and "│" not in lines[9]
    assert lines[-1] == "left out 1 prompts that the reward does not apply to"


@pytest.mark.parametrize(
    ("samples", "edges"), [(16, (1, 14)), (8, (1, 7)), (4, (1, 3)), (2, (1, 1)), (32, (2, 28))]
)
def test_the_papers_shares(samples, edges):
    assert band_edges(samples) == edges


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 1}, "2 samples per prompt or more"),
        ({"lowest": 5, "highest": 3}, "got 5 to 3"),
        ({"highest": 9}, "lowest <= highest <= 8"),
        ({"reward": "exact"}, "unknown reward"),
        ({"reward": "math", "prompts": PromptSet(({"prompt": "x"},))}, "needs"),
    ],
)
def test_refused_before_the_model_is_loaded(arguments, options, words, monkeypatch):
    monkeypatch.setattr(engines, "load_checkpoint", None)
    with pytest.raises(ValueError, match=words):
        calibration_band(**{**arguments, **options})


def test_a_folder_of_checkpoints_is_refused(arguments, save_checkpoint):
    first = save_checkpoint("run/checkpoint-1")
    save_checkpoint("run/checkpoint-2")
    with pytest.raises(ValueError, match="one checkpoint is wanted"):
        calibration_band(**{**arguments, "checkpoint": first.parent})


def test_command(save_checkpoint, write_jsonl, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "def reward(completions, **_):\n    return [float(len(c) % 2 == 0) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["band", str(save_checkpoint()), "--output-dir", str(tmp_path / "out")]
    words += ["--prompts", str(write_jsonl(list(PROMPTS.rows))), "--reward", "my_reward:reward"]
    words += ["--num_samples", "8", "--max-new-tokens", "6", "--no-progress", "--device", "cpu"]
    assert main(words) == 0
    assert "passes of 8, prompts" in capsys.readouterr().out
    assert (tmp_path / "out" / "band.jsonl").is_file()
    assert main([*words, "--system", "x"]) == 2
    assert "--chat" in capsys.readouterr().err
