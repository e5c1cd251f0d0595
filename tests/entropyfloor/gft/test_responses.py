"""Responses that a data set brings along: where they may stand, and what is refused by row."""

import pytest

from entropyfloor.gft.responses import Response, collect_responses
from entropyfloor.rollouts.prompts import PromptSet


def said(text):
    return [{"role": "assistant", "content": text}]


def asked(text):
    return [{"role": "user", "content": text}]


def test_in_order_from_every_place():
    prompts = PromptSet(
        (
            {
                "prompt": "1+1=",
                "completion": "2",
                "alternatives": ["two", "II"],
                "responses": [
                    {"source": "teacher", "completion": "3", "reward": 0},
                    {"source": "expert", "completion": "1+1"},
                ],
            },
            {"prompt": "2+2=", "completion": ["4", "four"], "alternatives": None},
            {"prompt": "3+3=", "completion": None, "responses": []},
        )
    )
    others = PromptSet(
        (
            {"prompt": "3+3=", "completion": "6", "source": "teacher"},
            {"prompt": "1+1=", "completion": ["10", "b10"], "source": None},
        )
    )
    groups = collect_responses(prompts, other_columns=["alternatives"], others=others)
    assert groups == [
        [
            Response("teacher", "3", 0),
            Response("expert", "1+1"),
            Response("expert", "2"),
            Response("other", "two"),
            Response("other", "II"),
            Response("other", "10"),
            Response("other", "b10"),
        ],
        [Response("expert", "4"), Response("expert", "four")],
        [Response("teacher", "6")],
    ]


def test_another_expert_column_and_repeated_prompts():
    prompts = PromptSet(({"prompt": "a", "solution": "x"}, {"prompt": "a", "completion": "y"}))
    assert collect_responses(prompts, expert_column="solution") == [[Response("expert", "x")], []]
    others = PromptSet(({"prompt": "a", "completion": "z"},))
    assert [len(group) for group in collect_responses(prompts, others=others)] == [1, 2]


def test_conversations():
    prompts = PromptSet(
        (
            {"prompt": asked("1+1"), "completion": "2"},
            {"prompt": asked("2+2"), "completion": said("4")},
            {"prompt": asked("3+3"), "completion": [said("6"), said("six")]},
        )
    )
    others = PromptSet(({"prompt": asked("1+1"), "completion": said("II")},))
    groups = collect_responses(prompts, others=others)
    assert [[each.completion for each in group] for group in groups] == [
        [said("2"), said("II")],
        [said("4")],
        [said("6"), said("six")],
    ]


def test_what_says_the_same():
    assert Response("expert", " 2\n").key == Response("teacher", "2").key
    assert Response("expert", said("2 ")).key == Response("teacher", said("2")).key
    assert Response("expert", "2 3").key != Response("teacher", "23").key
    call = [*said("let me see"), {"role": "tool", "content": "2"}, *said("2")]
    assert Response("expert", call).key != Response("teacher", said("2")).key


ROW = {"prompt": "a", "completion": "x"}


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"completion": " \n"}, {}, "row 1 has an empty completion"),
        ({"completion": 5}, {}, "row 1, column 'completion': a completion is text"),
        ({"completion": said("x")}, {}, "row 1: the completion is a list of messages but"),
        ({"prompt": asked("b"), "completion": [{"role": "assistant"}]}, {}, "each message needs"),
        ({}, {"expert_column": "gold"}, "no column 'gold' with responses, only 'completion'"),
        ({}, {"other_columns": ["more"]}, "no column 'more'"),
        ({"responses": "x"}, {}, "row 1: the column 'responses' is a list of objects"),
        ({"responses": [{"completion": "x"}]}, {}, "row 1, response 0: the source of a response"),
        ({"responses": [{"source": "self", "completion": "x"}]}, {}, "got 'self'"),
        ({"responses": [{"source": "other"}]}, {}, "response 0 has 0 completions"),
        *(
            (
                {"responses": [{"source": "other", "completion": "x", "reward": reward}]},
                {},
                f"row 1, response 0 has the reward {reward}".replace("+", r"\+"),
            )
            for reward in (float("nan"), 1e39, 10**400)
        ),
    ],
)
def test_refused_by_row(row, options, words):
    with pytest.raises(ValueError, match=words):
        collect_responses(PromptSet((ROW, {"prompt": "b", **row})), **options)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "unknown", "completion": "x"}, "row 0: its prompt is none of those of"),
        ({"prompt": "a"}, "row 0 has no completion"),
        ({"prompt": "a", "completion": "x", "source": "self"}, "row 0: the source of a response"),
    ],
)
def test_a_file_of_others_is_refused_by_row(row, words):
    with pytest.raises(ValueError, match=words):
        collect_responses(PromptSet((ROW,)), others=PromptSet((row,), "others.jsonl"))
