"""Rows that an "auto" floor is read off: of every task, apart from all others, and in a key."""

import json

import pytest

from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import check_sources, sources
from entropyfloor.echelon.stages import Stages
from tiny_models import save_tiny

TASKS = [
    (
        "small",
        {"task": "small_sums", "pretraining": 20, "demonstrations": 6, "rl_prompts": 5, "test": 4},
        "validation",
    ),
    (
        "smollm2",
        {"task": "worked_sums", "train_problems": 6, "held_out_problems": 4, "rl_problems": 5},
        "validation_problems",
    ),
    (
        "smollm2",
        {"task": "gsm_symbolic", "train_problems": 6, "held_out_problems": 4, "rl_problems": 5},
        "validation_problems",
    ),
]


def read(model, data):
    recipe = {
        "model": model,
        "data": data,
        "losses": {"ce": {"loss": "ce"}, "auto": {"loss": "ce", "entropy_floor": "auto"}},
        "depths": [1],
        "screening": {"max_new_tokens": 8},
    }
    return sources(load_recipe(recipe), 0)


def texts(rows):
    return {json.dumps(row["prompt"]) for row in rows}


@pytest.mark.parametrize(("model", "data", "name"), TASKS, ids=lambda value: str(value)[:20])
def test_they_are_drawn_last_and_are_nowhere_else(model, data, name):
    without, drawn = read(model, data), read(model, {**data, name: 3})
    assert without.validation == () and len(texts(drawn.validation)) == 3
    for part in ("rows", "rl"):
        assert getattr(drawn, part) == getattr(without, part)
    assert drawn.test.rows == without.test.rows
    others = texts(drawn.rows) | texts(drawn.rl) | texts(drawn.test.rows)
    assert not texts(drawn.validation) & others
    assert set(drawn.validation[0]) == {"prompt", "completion"}
    assert drawn.validation_of("auto") == drawn.validation and drawn.validation_of("ce") == ()
    with pytest.raises(ValueError, match=f"{name} must be at least 0; got -1"):
        read(model, {**data, name: -1})


def test_rows_of_a_file_are_checked_like_those_for_training(tmp_path):
    save_tiny(tmp_path / "model")
    row = {"prompt": "1 + 1 =", "completion": " 2", "answer": "2"}
    for part, lines in {"train": [row], "held_out": [row], "validation": [row, row]}.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    data = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "held_out", "validation")}
    data |= {"task": "files", "reward": "exact_match"}
    drawn = read(str(tmp_path / "model"), data)
    check_sources(drawn)
    assert [r["completion"] for r in drawn.validation] == [" 2", " 2"]
    drawn.write(tmp_path / "written")
    assert (tmp_path / "written" / "validation.jsonl").read_text().count("\n") == 2
    (tmp_path / "validation.jsonl").write_text(json.dumps({"prompt": "1"}) + "\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl"):
        read(str(tmp_path / "model"), data)


def test_only_what_reads_them_is_trained_again(tmp_path):
    model, data, name = TASKS[1]
    before, after = (
        Stages(read(model, {**data, name: count}).recipe, tmp_path) for count in (0, 3)
    )
    assert before.sft_run("ce", 0).key == after.sft_run("ce", 0).key
    assert before.sft_run("auto", 0).key != after.sft_run("auto", 0).key
