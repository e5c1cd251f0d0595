"""One prompt file, one meaning: every verb hands a reward the objects that were read.

Each verb runs on rows of mixed types, some of which Arrow refuses and some of which it changes,
with every named reward and one of ``module:function``, all of which keep what they are given.
"""

import datetime
import functools
import json
import sys

import pytest
from datasets import Dataset

from entropyfloor import SEDConfig, SEDTrainer
from entropyfloor.cli.main import main
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.run import run_echelon
from entropyfloor.rollouts.prompts import PromptSet, load_prompts, reward_columns
from entropyfloor.rollouts.rewards import NAMED_REWARDS
from tiny_models import tiny_model, tiny_tokenizer

USER = {"role": "user", "content": "3+3="}
TESTS = ["assert add(1) == 2", "assert add(2) == 3"]
ROWS = [
    {"prompt": "1+1=", "n": 12, "mixed": "a", "deep": {"x": [1, None]}, "answer": 2},
    {"prompt": [USER], "n": 0.5, "mixed": ["b"], "deep": [[1], "2"], "late": True, "answer": "6"},
    {
        "prompt": [{**USER, "name": "Ann"}, {"role": "assistant", "content": "It is"}],
        "mixed": None,
        "deep": 7,
        "solution": "$6$",
        "answer": 6.5,
    },
    {"prompt": "2+2=", "n": None, "mixed": {"c": 1.0}, "deep": [], "late": "12", "answer": "4"},
]
ROWS = [
    {**row, "tests": tests, "entry": dict(entry, extra=index)}
    for index, (row, tests, entry) in enumerate(
        zip(
            ROWS,
            [TESTS, TESTS[1], TESTS[1:], TESTS[1]],
            [row["entry"] for row in load_prompts("reasoning_gym:chain_sum?size=4&seed=7").rows],
            strict=True,
        )
    )
]
OWN = "recorder:by_length"
REWARDS = [*NAMED_REWARDS, OWN]

DRAWS = "--prompts rows.jsonl --device cpu --no-progress --max-new-tokens 3 --output-dir out"
TRAINS = (
    "--model_name_or_path model --output_dir out --max_steps 2 --max_completion_length 3 "
    "--report_to none --disable_tqdm True --use_cpu True --bf16 False --save_strategy no"
)
GRPO = f"grpo {TRAINS} --num_generations 2 --per_device_train_batch_size 4 --monitor warn"
# How each verb is called; {reward} is one name, or all of them where a verb takes several.
VERBS = {
    "screen": f"screen model {DRAWS} --num_samples 2 --group-size 2 --fail-on none "
    "--reward {reward}",
    "band": f"band model {DRAWS} --num_samples 2 --lowest 0 --highest 2 --reward {{reward}}",
    "gft-groups": f"gft-groups model {DRAWS} --num_samples 1 --reward {{reward}}",
    "coupling": f"coupling --sft model --rl other --demos demos.jsonl {DRAWS} --num_samples 2 "
    "--sft-samples 2 --gradient-rows 0 --reward {reward}",
    "grpo": f"{GRPO} --prompts rows.jsonl --reward {{rewards}}",
    "grpo --dataset_name": f"{GRPO} --dataset_name rows.jsonl --reward {{rewards}}",
    "grpo --screen_prompts": f"{GRPO} --prompts other.jsonl --screen_prompts rows.jsonl "
    "--screen_samples 2 --reward {reward}",
    "gft": f"gft {TRAINS} --groups groups.jsonl --num_self 2 --per_device_train_batch_size 2 "
    "--reward {rewards}",
}


class Recorder:
    """A reward that keeps what it is given, under the name and with the checks of another."""

    def __init__(self, reward):
        self.seen = []
        functools.update_wrapper(self, reward)

    def __call__(self, prompts, completions, completion_ids, **columns):
        for name in ("trainer_state", "log_extra", "log_metric"):  # trl's, for every reward
            columns.pop(name, None)
        for place, prompt in enumerate(prompts):
            if not completion_ids[place]:  # a row's own reference, which is scored beforehand
                continue
            row = {name: values[place] for name, values in columns.items()}
            self.seen.append((prompt, completions[place], row))
        return self.__wrapped__(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )


def same(left, right):
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def check_seen(seen, rows=ROWS):
    """Every row was given, and as it was written; None where it lacks a column."""
    names = PromptSet(tuple(rows)).columns
    whole = [{name: row.get(name) for name in names} for row in rows]
    rows_seen = set()
    for prompt, completion, columns in seen:
        (index,) = (i for i, row in enumerate(rows) if same(row["prompt"], prompt))
        expected = reward_columns(whole[index])
        assert same(columns, expected), (columns, expected)
        assert isinstance(completion, str) == isinstance(prompt, str)
        rows_seen.add(index)
    assert rows_seen == set(range(len(rows)))


@pytest.fixture
def recorders(monkeypatch, tmp_path, save_checkpoint, write_jsonl):
    """Name of each reward -> its recorder; files and checkpoints are in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "recorder.py").write_text(
        "def by_length(completion_ids, **_):\n    return [len(ids) % 2 for ids in completion_ids]\n"
    )
    import recorder

    for name in NAMED_REWARDS:
        monkeypatch.setitem(NAMED_REWARDS, name, Recorder(NAMED_REWARDS[name]))
    monkeypatch.setattr(recorder, "by_length", Recorder(recorder.by_length))
    save_checkpoint("model")
    save_checkpoint("other", seed=1)
    write_jsonl(ROWS, "rows.jsonl")
    write_jsonl([{**row, "prompt": "0+0="} for row in ROWS], "other.jsonl")
    write_jsonl([{"prompt": "1+0=", "completion": "1"}] * 2, "demos.jsonl")
    responses = [{"source": "expert", "completion": "2"}, {"source": "teacher", "completion": "3"}]
    said = [{**r, "completion": [{"role": "assistant", "content": "6"}]} for r in responses]
    groups = [
        {**row, "responses": said if type(row["prompt"]) is list else responses} for row in ROWS
    ]
    write_jsonl(groups, "groups.jsonl")
    yield {**NAMED_REWARDS, OWN: recorder.by_length}
    del sys.modules["recorder"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_reward_is_given_the_rows_of_the_file(verb, recorders, tmp_path, capsys):
    several = "{rewards}" in VERBS[verb]
    # Verbs that draw rollouts share one engine: every reward with one of them, two with the others.
    each = REWARDS if verb == "screen" else [OWN, "unit_tests"]
    for name in [OWN] if several or "screen_prompts" in verb else each:
        words = VERBS[verb].format(reward=name, rewards=" ".join(REWARDS))
        argv = words.replace(" out", f" out-{name.replace(':', '-')}").split()
        assert main(argv) == 0, capsys.readouterr().err
        for judged in REWARDS if several else [name]:
            check_seen([call for call in recorders[judged].seen if call[0] != "0+0="])


@pytest.mark.parametrize("name", REWARDS)
def test_the_floors_probe(name, recorders, tmp_path):
    trainer = SEDTrainer(
        tiny_model(),
        SEDConfig(
            str(tmp_path / "out"),
            **{"loss": "ce", "entropy_floor": 1.0, "floor_probe_steps": 1, "max_steps": 1},
            **{"floor_probe_tokens": 3, "use_cpu": True, "bf16": False, "report_to": []},
            **{"save_strategy": "no", "disable_tqdm": True},
        ),
        train_dataset=Dataset.from_list([{"prompt": "1+0=", "completion": "1"}] * 2),
        processing_class=tiny_tokenizer(),
        probe_prompts=load_prompts("rows.jsonl"),
        probe_reward=name,
    )
    trainer.train()
    check_seen(recorders[name].seen)


def test_an_echelon(recorders, tmp_path):
    recipe = {
        "name": "files",
        "model": {"name": "model"},
        "data": {
            "task": "files",
            "train": "demos.jsonl",
            "held_out": "rows.jsonl",
            "rl": "rows.jsonl",
            "reward": OWN,
        },
        "losses": {"ce": {"loss": "ce"}},
        "depths": [1],
        "seeds": [0],
        "sft": {"per_device_train_batch_size": 2},
        "screening": {"num_samples": 2, "group_size": 2, "ks": [1], "max_new_tokens": 3},
        "grpo": {"steps": 1, "save_every": 1, "prompts_per_step": 4, "group_size": 2},
    }
    result = run_echelon(
        load_recipe(recipe), tmp_path / "echelon", say=lambda line: None, progress=False
    )
    assert not result.failures
    check_seen(recorders[OWN].seen)


def test_what_is_written_reads_back_as_the_same_rows(recorders, tmp_path):
    band = VERBS["band"].format(reward=OWN)
    assert main(band.split()) == 0
    kept = [dict(row) for row in load_prompts("out/band.jsonl").rows]
    for row in kept:
        assert (row.pop("band_samples"), type(row.pop("band_passes"))) == (2, int)
    assert same(kept, ROWS)
    groups = VERBS["gft-groups"].format(reward=OWN).replace(" out", " groups")
    assert main(groups.split()) == 0
    built = [dict(row) for row in load_prompts("groups/groups.jsonl").rows]
    for row in built:
        del row["responses"]
    assert same(built, ROWS)


def test_what_json_cannot_hold_is_said_before_anything_is_drawn(recorders, tmp_path, capsys):
    when = datetime.datetime(2026, 1, 2)
    rows = [{"prompt": "1+1=", "when": None}, {"prompt": "2+2=", "when": when}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for verb in ("band", "gft-groups"):
        argv = VERBS[verb].format(reward=OWN).replace("rows.jsonl", "saved").split()
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "row 1: column 'when' holds a datetime, which JSON cannot hold" in said
        assert not (tmp_path / "out").exists()
    screen = VERBS["screen"].format(reward=OWN).replace("rows.jsonl", "saved").split()
    assert main(screen) == 0
    assert {columns["when"] for _, _, columns in recorders[OWN].seen} == {None, when}
    assert json.loads((tmp_path / "out" / "screening.json").read_text())
