"""Response groups: deduplicated, scored, the same after a kill; other settings are refused."""

import json
import os
from functools import partial

import pytest

from entropyfloor.gft.response_groups import count_responses
from entropyfloor.gft.responses import Response
from entropyfloor.rollouts import draw, engines
from entropyfloor.rollouts.prompts import PromptSet
from flat_calls import build_response_groups
from killed_runs import kill_while_drawing

PROMPTS = PromptSet(
    tuple(
        {"prompt": f"{i}+{i}=", "completion": str(2 * i), "answer": str(2 * i), "n": [i]}
        for i in range(6)
    ),
    "sums",
)
OTHERS = PromptSet(
    (
        {"prompt": "0+0=", "completion": "zero", "source": "teacher"},
        {"prompt": "0+0=", "completion": " 0 "},  # what the expert says
    ),
    "other",
)


def even_length(completions, **_):
    return [float(len(text) % 2 == 0) for text in completions]


@pytest.fixture
def build(save_checkpoint, tmp_path):
    """``build_response_groups`` on the sums; keyword arguments change the call."""
    return partial(
        build_response_groups,
        teacher=save_checkpoint(peak=6.0),
        prompts=PROMPTS,
        reward=even_length,
        output_dir=tmp_path / "groups",
        other=OTHERS,
        num_samples=6,
        max_new_tokens=3,
        keep_truncated=True,
        progress=False,
        device="cpu",
    )


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_groups_by_hand_from_the_rollouts(build):
    groups = build()
    rollouts = json_lines(groups.folder / "rollouts-model-00000.jsonl")
    rows = json_lines(groups.path)
    assert [row["prompt"] for row in rows] == PROMPTS.prompts
    kept = 0
    for index, row in enumerate(rows):
        assert set(row) == {"prompt", "answer", "n", "responses"}
        assert row["n"] == [index]
        texts = [row["responses"][0]["completion"]]
        assert texts == [str(2 * index)]
        if index == 0:
            texts.append("zero")
        of_dataset = len(texts)
        drawn = sorted(
            (r for r in rollouts if r["prompt_index"] == index), key=lambda r: r["sample_index"]
        )
        assert len(drawn) == 6
        for rollout in drawn:
            if rollout["text"].strip() and rollout["text"].strip() not in map(str.strip, texts):
                texts.append(rollout["text"])
        assert [each["completion"] for each in row["responses"]] == texts
        sources = ["expert", "teacher"][:of_dataset] + ["teacher"] * (len(texts) - of_dataset)
        assert [each["source"] for each in row["responses"]] == sources
        assert [each["reward"] for each in row["responses"]] == even_length(texts)
        kept += len(texts)
    counts = groups.counts.by_source
    assert counts["expert"].responses == counts["expert"].kept == 6
    assert (counts["other"].responses, counts["other"].duplicates) == (1, 1)
    assert counts["teacher"].responses == 1 + 36
    teacher = counts["teacher"]
    assert teacher.kept + teacher.duplicates + teacher.empty == 37
    assert teacher.kept + 6 == kept
    right = sum(r["reward"] for r in rollouts) + sum(even_length(["zero"]))
    assert (teacher.scored, teacher.passed) == (37, right)
    rewards = [each["reward"] for row in rows for each in row["responses"]]
    assert sum(rewards) == teacher.kept_passed + counts["expert"].kept_passed
    assert 0 < teacher.kept_passed < teacher.passed < teacher.scored
    assert groups.counts.mixed > 0
    total = groups.counts.mixed + groups.counts.all_passed + groups.counts.none_passed
    assert total == groups.num_prompts == 6
    document = json.loads((groups.folder / "groups.json").read_text())
    assert document == groups.to_dict()
    assert document["sources"]["teacher"]["pass_rate"] == teacher.passed / teacher.scored


def test_truncated_samples_are_left_out(build, tmp_path):
    groups = build(keep_truncated=False, output_dir=tmp_path / "whole")
    rollouts = json_lines(groups.folder / "rollouts-model-00000.jsonl")
    truncated = sum(r["truncated"] for r in rollouts)
    assert groups.counts.by_source["teacher"].truncated == truncated > 0
    long = {(r["prompt_index"], r["text"]) for r in rollouts if r["truncated"]}
    short = {(r["prompt_index"], r["text"]) for r in rollouts if not r["truncated"]}
    for index, row in enumerate(json_lines(groups.path)):
        for each in row["responses"][1:]:
            assert (index, each["completion"]) not in long - short


def test_conversations(build):
    chat = PROMPTS.with_chat_options(chat=True, system="Add.")

    def content(completions, completion_ids, **_):
        assert all(len(ids) > 0 for ids in completion_ids)
        return even_length([messages[0]["content"] for messages in completions])

    groups = build(prompts=chat, other=None, reward=content)
    for row in json_lines(groups.path):
        assert row["prompt"][0] == {"role": "system", "content": "Add."}
        for each in row["responses"]:
            ((message),) = each["completion"]
            assert message["role"] == "assistant"
            assert each["reward"] == float(len(message["content"]) % 2 == 0)


def test_without_a_reward_it_is_left_to_the_trainer(build):
    groups = build(reward=None)
    assert all("reward" not in each for row in json_lines(groups.path) for each in row["responses"])
    assert groups.counts.by_source["expert"].pass_rate is None
    assert groups.counts.mixed == 0


def test_where_the_reward_does_not_apply(build):
    def some(completions, **_):
        return [None if text == "2" else 1.0 for text in completions]

    groups = build(reward=some)
    first = json_lines(groups.path)[1]["responses"][0]
    assert first == {"source": "expert", "completion": "2"}
    assert groups.counts.by_source["expert"].scored == 5


def test_groups_made_before_are_extended_and_scored_anew(build, tmp_path):
    first = build()
    made = PromptSet(tuple(json_lines(first.path)))

    def one(completions, **_):
        return [1.0] * len(completions)

    second = build(
        prompts=made,
        other=None,
        seed=1,
        reward=one,
        output_dir=tmp_path / "second",
    )
    for before, after in zip(json_lines(first.path), json_lines(second.path), strict=True):
        texts = [each["completion"] for each in before["responses"]]
        assert [each["completion"] for each in after["responses"]][: len(texts)] == texts
        assert {each["reward"] for each in after["responses"]} == {1.0}
    assert second.counts.by_source["teacher"].kept > first.counts.by_source["teacher"].kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed(build, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "BLOCK", 2)
    build.keywords["batch_size"] = 5
    expected = build(output_dir=tmp_path / "undisturbed")
    folder = build.keywords["output_dir"]
    for _ in range(3):
        kill_while_drawing(build, folder)
    assert not (folder / "groups.jsonl").exists()
    resumed = build()
    assert resumed.path.read_bytes() == expected.path.read_bytes()
    assert resumed.counts == expected.counts
    monkeypatch.setattr(engines, "load_checkpoint", lambda *_, **__: pytest.fail("loaded"))
    again = build(reward=_never_called())
    assert again.path.read_bytes() == expected.path.read_bytes()


def _never_called():
    def even_length(**_):
        pytest.fail("everything was scored already")

    return even_length


def test_more_samples_extend(build):
    few = build(num_samples=2)
    before = json_lines(few.path)
    more = build()
    assert more.counts.by_source["teacher"].responses == 37
    for short, long in zip(before, json_lines(more.path), strict=True):
        assert long["responses"][: len(short["responses"])] == short["responses"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.5}, "temperature: 1.0 then, 0.5 now"),
        ({"other": None}, "responses of the data set"),
        ({"keep_truncated": False}, "keep_truncated: True then, False now"),
        ({"reward": None}, "reward: 'even_length' then, None now"),
    ],
)
def test_other_settings_are_not_mixed(build, changes, words):
    build()
    with pytest.raises(ValueError, match=words):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"reward": "exact"}, "unknown reward"),
        ({"reward": "reasoning_gym"}, "needs a column 'entry'"),
        ({"max_new_tokens": 999}, "exceeds the context"),
        ({"other": PromptSet(({"prompt": "x", "completion": "y"},))}, "is none of those of sums"),
    ],
)
def test_refused_before_the_model_is_loaded(build, changes, words, monkeypatch):
    monkeypatch.setattr(engines, "load_checkpoint", None)
    with pytest.raises(ValueError, match=words):
        build(**changes)
    assert not build.keywords["output_dir"].exists()


def test_counts_of_one_group():
    of_dataset = [Response("expert", "4", 1.0), Response("other", "4 ", 1.0)]
    drawn = [
        (Response("teacher", "5", 0.0), False),
        (Response("teacher", "5", 0.0), True),
        (Response("teacher", " ", 0.0), False),
        (Response("teacher", "four", None), False),
        (Response("teacher", "4", 1.0), False),
    ]
    group, counts = count_responses(of_dataset, drawn, keep_truncated=False, threshold=1.0)
    assert [each.completion for each in group] == ["4", "5", "four"]
    teacher = counts.by_source["teacher"]
    assert (teacher.responses, teacher.truncated, teacher.empty, teacher.kept) == (5, 1, 1, 2)
    assert (teacher.scored, teacher.passed, teacher.reward_sum) == (4, 1, 1.0)
    assert teacher.kept_passed == 0
    assert (counts.mixed, counts.all_passed, counts.none_passed) == (1, 0, 0)
    twice = counts + counts
    assert twice.by_source["other"].duplicates == 2
    assert twice.mixed == 2
    group, counts = count_responses([], [], keep_truncated=False, threshold=1.0)
    assert (group, counts.without_response, counts.none_passed) == ([], 1, 0)
