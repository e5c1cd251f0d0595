"""Bad rows, cached rewards, unscored responses, groups of one, draws from rich rows."""

import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from gft_runs import Recorder, gft, ids_of, logged, settings

from entropyfloor import GFTTrainer
from entropyfloor.gft.responses import Response
from entropyfloor.gft.rows import draw
from tiny_models import tiny_model, tiny_tokenizer


def response(source="expert", completion=" 4.", reward=None):
    return {"source": source, "completion": completion, "reward": reward}


def row(prompt="2+2=", responses=None, **more):
    return {"prompt": prompt, "responses": responses or [], "answer": 4, **more}


GOOD = row(responses=[response(), response("teacher", " 5.")])
EMPTY = row(prompt="  ", responses=[response()])


# What the column `responses` may hold is in test_responses.py: there is one reader of it.
@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (EMPTY, {}, "row 1 has an empty prompt"),
        (row(responses=[response("self")]), {}, "response 0: the source.*got 'self'"),
        (row(), {"num_self": 0}, "row 1 has no response to train on"),
        (
            row(responses=[response("other")]),
            {"num_self": 0, "num_other": 0},
            "row 1 has no response to train on: it has other",
        ),
        (
            row(responses=[response()]),
            {"num_self": 0},
            "row 1 gives a group of one response.*group_of_one='imitate'",
        ),
    ],
)
def test_bad_rows_are_named_before_anything_is_computed(tmp_path, bad, options, message):
    with pytest.raises(ValueError, match=f"train_dataset, .*{message}"):
        gft(tmp_path, rows=[GOOD, bad, GOOD], **options)


def test_bad_rows_of_an_evaluation_set_are_named_too(tmp_path):
    bad = Dataset.from_list([GOOD, EMPTY])
    for eval_dataset, name in ((bad, "eval_dataset"), ({"a": bad}, "eval_dataset 'a'")):
        with pytest.raises(ValueError, match=f"{name}, row 1 has an empty prompt"):
            gft(tmp_path, trainer={"eval_dataset": eval_dataset})


def test_datasets_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="'prompt' is missing"):
        gft(tmp_path, rows=[{"question": "2+2="}])
    with pytest.raises(ValueError, match="no column 'responses' and num_self is 0"):
        gft(tmp_path, rows=[{"prompt": "2+2="}], num_self=0)
    stream = IterableDataset.from_generator(lambda: iter([GOOD]))
    with pytest.raises(ValueError, match=r"is IterableDataset.*read twice"):
        gft(tmp_path, trainer={"eval_dataset": stream})
    with pytest.raises(ValueError, match="eval_dataset has no rows"):
        gft(tmp_path, trainer={"eval_dataset": Dataset.from_dict({"prompt": []})})


def unable(value, at):
    """A reward that is ``value`` for completions with ``at`` in them."""

    def reward(completions, **_):
        return [value if at in c else float(len(c) % 2) for c in completions]

    return reward


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_row_s_response_without_reward_is_named_before_the_first_step(tmp_path, value):
    trainer = gft(tmp_path, rows=[GOOD, GOOD], reward=unable(value, "5"))
    with pytest.raises(ValueError, match="train_dataset, row 0, response 1: the reward is"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("value", [None, math.nan])
def test_an_own_sample_without_reward_is_named_by_its_row(tmp_path, value):
    def reward(completions, **_):
        return [1.0 if c in (" 4.", " 5.") else value for c in completions]

    with pytest.raises(ValueError, match=r"row [01]: no reward function scored a self response"):
        gft(tmp_path, rows=[GOOD, GOOD], reward=reward).train()


def test_responses_without_reward_can_be_left_out(tmp_path):
    """As if the dataset did not have them, but counted."""
    without = {**GOOD, "responses": [response()]}
    options = {"num_self": 0, "group_of_one": "imitate", "tau": 0.0}
    ours = gft(tmp_path, rows=[GOOD], reward=unable(None, "5"), on_unscored="leave_out", **options)
    ours.train()
    theirs = gft(tmp_path, rows=[without], reward=unable(None, "5"), **options)
    theirs.train()
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert logged(ours)[0]["responses/unscored"] == 0.5
    assert logged(ours)[0]["expert/tokens"] == len(ids_of(" 4.")) + 1
    assert "teacher/tokens" not in logged(ours)[0]


def test_a_group_of_one_is_skipped_with_its_tokens(tmp_path):
    """Its row changes nothing: the others are trained on as without it."""
    pair = [GOOD, {**GOOD, "prompt": "another: 2+2="}]
    lone = row(prompt="alone", responses=[response(completion=" a long one")])
    options = {"num_self": 0, "group_of_one": "skip", "tau": 0.0, "reward": unable(None, "x")}
    ours = gft(tmp_path, rows=[pair[0], lone, pair[1]], **options)
    ours.train()
    theirs = gft(tmp_path, rows=pair, **options)
    theirs.train()
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert logged(ours)[0]["groups/of_one"] == pytest.approx(1 / 3)


def test_nothing_to_train_on_is_a_step_without_effect(tmp_path):
    lone = row(responses=[response()])
    trainer = gft(tmp_path, rows=[lone, lone], num_self=0, group_of_one="skip")
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert logged(trainer)[0]["loss"] == 0.0
    for mine, other in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(mine, other)


def test_cached_rewards_are_not_asked_for(tmp_path):
    rows = [row(responses=[response(reward=0.25), response("teacher", " 5.", None)])]
    recorder = Recorder()
    trainer = gft(tmp_path, rows=rows, reward=recorder, num_self=0)
    trainer.train()
    assert [ids for _, ids, _ in recorder.calls[0]] == [[*ids_of(" 5."), 1]]
    assert logged(trainer)[0]["expert/reward"] == 0.25


def test_without_reward_functions_everything_must_be_cached(tmp_path):
    cached = [row(responses=[response(reward=1.0), response("teacher", " 5.", 0.0)])]

    def trainer(rows, **changes):
        return GFTTrainer(
            tiny_model(),
            args=settings(tmp_path, **changes),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )

    offline = trainer(cached, num_self=0)
    offline.train()
    assert logged(offline)[0]["expert/advantage"] == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(ValueError, match="there is no eval_dataset"):
        offline.evaluate()
    with pytest.raises(ValueError, match="eval_dataset, row 0, response 0 carries no reward"):
        offline.evaluate(Dataset.from_list([GOOD]))
    with pytest.raises(ValueError, match="policy samples cannot be scored"):
        trainer(cached)
    with pytest.raises(ValueError, match="row 1, response 0 carries no reward"):
        trainer([*cached, GOOD], num_self=0)


def test_columns_go_to_the_reward_functions_and_ours_do_not(tmp_path):
    seen = []

    def reward(completions, **columns):
        seen.append(set(columns))
        return [float(len(c) % 2) for c in completions]

    gft(tmp_path, rows=[{**GOOD, "level": "easy"}] * 2, reward=reward).train()
    assert len(seen) == 2
    for columns in seen:
        assert {"prompts", "completion_ids", "answer", "level", "trainer_state"} <= columns
        assert not columns & {"responses", "entropyfloor_row", "_response_rewards"}


@pytest.mark.parametrize("as_text", [False, True])
def test_conversations_are_rendered_by_the_chat_template(tmp_path, as_text):
    """Text that answers a conversation is one assistant message, as where groups are built."""

    def said(text):
        return [{"role": "assistant", "content": text}]

    texts = ["4", "five"]
    prompt = [{"role": "user", "content": "2+2?"}]
    responses = [
        response(source, text if as_text else said(text))
        for source, text in zip(("expert", "teacher"), texts, strict=True)
    ]
    calls = []

    def reward(prompts, completions, completion_ids, **_):
        calls.append((prompts, completions, completion_ids))
        return [float(i % 2) for i in range(len(prompts))]

    rows = [{"prompt": prompt, "responses": responses}]
    trainer = gft(tmp_path, rows=rows, reward=reward, num_self=2)
    trainer.train()
    (prompts, completions, ids), (_, second, _) = calls
    assert prompts[0] == prompt
    assert completions == [said(text) for text in texts]
    assert ids == [[*ids_of(text), 1] for text in texts]
    assert [message["role"] for completion in second for message in completion] == ["assistant"] * 2
    batch = trainer._build([[trainer.train_dataset[0]]])[0]
    text = tiny_tokenizer().decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert text == "<|user|>2+2?<|end|><|assistant|>4<|end|>"


def test_more_responses_than_are_taken_are_drawn_from():
    rich = [Response(source, "4") for source in ["teacher"] * 6 + ["expert"] * 2]
    limits = {"expert": 1, "teacher": 3, "other": 0}

    def draws(row):
        return [draw(rich, limits, seed=1, step=step, row=row) for step in range(40)]

    assert draws(5) == draws(5) != draws(6)
    for drawn in draws(5):
        assert sum(rich[n].source == "teacher" for n in drawn) == 3
        assert len(set(drawn)) == len(drawn) == 4
    assert {n for drawn in draws(5) for n in drawn} == set(range(8))
