"""Rows that trl would drop or misread in silence, and evaluation sets that have names."""

import json

import pytest
from datasets import Dataset, load_dataset
from sft_runs import prompt_completion_rows, sed_trainer

from entropyfloor.sft.training_rows import checked_file, checked_rows
from tiny_models import tiny_tokenizer

TURN = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_text_parts_become_text(tmp_path, streamed, mixed):
    parts = {"role": "user", "content": [{"type": "text", "text": "1+"}]}
    # "2" beside a list is a number to datasets 5.2, and a streamed file cannot be read twice.
    reply = {**TURN[1], "content": "two" if streamed else "2"}
    reply = reply if mixed else {**TURN[1], "content": [{"type": "text", "text": "2"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": [parts, m]}) + "\n" for m in (reply, parts)))
    rows = load_dataset("json", data_files=str(file), split="train", streaming=streamed)
    dataset = checked_file(rows, str(file), "rows")
    joined = [[m["content"] for m in row["messages"]] for row in dataset]
    assert joined == [["1+", reply["content"] if mixed else "2"], ["1+", "1+"]]


def test_a_bad_row_of_a_streamed_set_is_named_when_it_comes():
    rows = Dataset.from_list([{"text": "a"}, {"text": None}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="rows, row 1 has None"):
        list(checked_rows(rows, "rows"))


def test_good_rows_are_handed_on_as_they_are():
    for rows in (
        Dataset.from_list([{"messages": TURN}]),
        Dataset.from_list([{"input_ids": [1, 2]}]),
        Dataset.from_list([{"conversations": [{"from": "human", "value": "x"}]}]),
        prompt_completion_rows(3),
    ):
        assert checked_rows(rows, "rows", tokenizer=tiny_tokenizer()) is rows


def test_the_rows_that_were_dropped_are_counted(tmp_path, caplog):
    long = [{"prompt": "x" * 40, "completion": "y"}] * 3
    with pytest.raises(
        ValueError, match=r"all 3 were dropped; .*max_length = 20 .*raise max_length"
    ):
        sed_trainer(tmp_path, max_length=20, trainer={"train_dataset": Dataset.from_list(long)})
    rows = Dataset.from_list([*long, {"prompt": "x", "completion": "y"}])
    sed_trainer(tmp_path, max_length=20, trainer={"train_dataset": rows})
    assert "train_dataset: 3 of 4 rows were dropped" in caplog.text


EVALUATION = {"short": prompt_completion_rows(3), "long": prompt_completion_rows(9)}


def test_each_evaluation_set_has_its_metrics_and_may_name_the_best_model(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"load_best_model_at_end": True, "greater_is_better": False}
    trainer = sed_trainer(
        tmp_path,
        metric_for_best_model="long_ce",
        trainer={"eval_dataset": EVALUATION},
        **options,
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_long_loss" in entry]
    assert len(evaluations) == 2
    assert trainer.state.best_metric == min(entry["eval_long_ce"] for entry in evaluations)
    for name in EVALUATION:
        logged = [e for e in trainer.state.log_history if f"eval_{name}_loss" in e]
        assert all(f"eval_{name}_{metric}" in logged[0] for metric in ("ce", "top_k_mass"))
        assert all("eval_ce" not in entry for entry in logged)
    assert "eval_ce" in trainer.evaluate(EVALUATION["short"])


def test_the_best_of_several_sets_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="name one: eval_short_loss, eval_long_loss"):
        sed_trainer(tmp_path, metric_for_best_model="ce", trainer={"eval_dataset": EVALUATION})
