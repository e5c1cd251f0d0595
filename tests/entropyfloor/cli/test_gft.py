"""``entropyfloor gft``: groups, rewards and flags of the trainer; the example's YAML as it is."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig, ModelConfig
from verb_words import error_of, verb_words

from entropyfloor import GFTConfig
from entropyfloor.cli import gft
from entropyfloor.cli.main import main
from entropyfloor.rl.monitor_memory import read_log

EXAMPLE = Path(__file__).parents[3] / "examples" / "gft.yaml"


def group(i):
    return {
        "prompt": f"{i} + 1 =",
        "answer": str(i + 1),
        "entry": {"number": i, f"only {i}": True},
        "responses": [
            {"source": "expert", "completion": f" {i + 1}", "reward": 1.0},
            {"source": "teacher", "completion": f" {i + 2}"},
        ],
    }


ROWS = [group(i) for i in range(8)]


@pytest.fixture
def flags(save_checkpoint, write_jsonl, tmp_path, monkeypatch):
    """The least a run needs, kept short and quiet; a reward that writes down what it scored."""
    (tmp_path / "gft_length_reward.py").write_text(
        "import json\n"
        "def short(completions, answer, entry, **_):\n"
        "    assert all(e['number'] == int(a) - 1 for e, a in zip(entry, answer))\n"
        "    with open('scored.txt', 'a') as file:\n"
        "        file.writelines(json.dumps(c) + '\\n' for c in completions)\n"
        "    return [float(len(c) % 2) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, rows = save_checkpoint("model"), write_jsonl(ROWS, "groups.jsonl")

    def build(**changes):
        words = {
            "model_name_or_path": model,
            "groups": rows,
            "reward": "gft_length_reward:short",
            "output_dir": tmp_path / "out",
            "num_self": 2,
            "per_device_train_batch_size": 4,
            "max_completion_length": 4,
        }
        return verb_words(**words | changes)

    return build


def test_no_flag_has_two_meanings():
    groups = (gft.GFTArguments, GFTConfig, ModelConfig, DatasetMixtureConfig)
    names = [field.name for each in groups for field in fields(each)]
    assert len(names) == len(set(names))


def test_trains_saves_and_scores_what_was_not_scored(flags, tmp_path, capsys):
    assert main(["gft", *flags(save_strategy="steps", save_steps=2)]) == 0
    out = tmp_path / "out"
    assert (out / "model.safetensors").is_file()
    assert f"entropyfloor screen {out} --prompts" in capsys.readouterr().out
    scored = [json.loads(line) for line in (tmp_path / "scored.txt").read_text().splitlines()]
    teachers = [row["responses"][1]["completion"] for row in ROWS]
    assert sorted(scored[: len(ROWS)]) == sorted(teachers)
    experts = {row["responses"][0]["completion"] for row in ROWS} - set(teachers)
    assert not experts & set(scored[: len(ROWS)])
    assert len(scored) == len(ROWS) + 2 * 4 * 2  # and two own samples of four prompts in each step
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    first = state["log_history"][0]
    assert first["expert/reward"] == 1.0
    assert first["groups/size"] == 4.0
    assert first["self/tokens"] > 0


def test_the_monitor_says_what_it_saw(flags, tmp_path, capsys):
    watched = {"monitor": "warn", "monitor_early_step": 1, "monitor_late_step": 2}
    assert main(["gft", *flags(**watched)]) == 0
    assert "Monitor: Step 2 of 2, " in capsys.readouterr().out
    verdict = read_log(tmp_path / "out")[-1]
    assert verdict["event"] == "verdict" and verdict["relative_drop"] is not None


def test_groups_of_the_builder(flags, save_checkpoint, write_jsonl, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "responses"} for row in ROWS]
    for row in rows:
        row["completion"] = f" {row['answer']}"
    built = tmp_path / "built"
    argv = [str(save_checkpoint("teacher", seed=1)), "--output-dir", str(built)]
    argv += ["--prompts", str(write_jsonl(rows, "rows.jsonl")), "--max-new-tokens", "3"]
    argv += ["--keep-truncated", "--no-progress", "--device", "cpu", "--reward", "exact_match"]
    assert main(["gft-groups", *argv]) == 0
    assert main(["gft", *flags(groups=built / "groups.jsonl", reward="exact_match")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_no_reward_where_everything_was_scored(flags, write_jsonl, tmp_path):
    for row in (rows := json.loads(json.dumps(ROWS))):
        row["responses"][1]["reward"] = 0.0
    scored = write_jsonl(rows, "scored.jsonl")
    assert main(["gft", *flags(groups=scored, reward=None, num_self=0)]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_trls_own_way_of_naming_rows(flags, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "entry"} for row in ROWS]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    argv = flags(groups=None, reward="exact_match", dataset_name=tmp_path / "saved")
    assert main(["gft", *argv]) == 0


def test_example(flags, tmp_path):
    named = ("num_self", "per_device_train_batch_size", "max_completion_length", "save_strategy")
    argv = flags(max_steps=1, max_completion_length=4, **dict.fromkeys(named[:2]))
    assert main(["gft", "--config", str(EXAMPLE), *argv]) == 0
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["r"] == 32
    parsed = gft.VERB.parse(["--config", str(EXAMPLE), *argv]).training
    assert (parsed.num_expert, parsed.num_teacher, parsed.num_self, parsed.tau) == (1, 3, 4, 0.7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": None}, "no reward: give --reward"),
        ({"reward": "exact"}, "unknown reward 'exact'"),
        ({"reward": "unit_tests"}, "unit_tests needs a column 'tests'"),
        ({"groups": None}, "no training data"),
        ({"dataset_name": "groups.jsonl"}, "--groups and --dataset_name"),
        ({"groups": "nowhere.jsonl"}, "no prompts at 'nowhere.jsonl'"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "--groups has no test split"),
        ({"monitor": "stop", "num_self": 0}, "--num_self 0 draws none"),
        ({"num_expert": -1}, "num_expert is -1"),
        ({"taw": 1}, "unknown argument --taw. Did you mean --tau?"),
    ],
)
def test_refused_before_the_model_is_loaded(flags, changes, words, capsys, monkeypatch):
    monkeypatch.setattr("entropyfloor.GFTTrainer.__init__", None)
    assert words in error_of("gft", flags(**changes), capsys)


def test_bad_rows_are_named(flags, write_jsonl, capsys):
    broken = [ROWS[0], {**ROWS[1], "responses": [{"source": "self", "completion": "x"}]}]
    assert "row 1, response 0" in error_of(
        "gft", flags(groups=write_jsonl(broken, "b.jsonl")), capsys
    )
