import json

import pytest
import reasoning_gym
from datasets import Dataset, DatasetDict

from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.reasoning_gym_prompts import parse_reasoning_gym_spec

CHAT = [{"role": "user", "content": "1+1="}]


def test_jsonl(write_jsonl):
    path = write_jsonl([{"prompt": "1+1=", "answer": "2"}, "", {"prompt": CHAT, "answer": 2}])
    prompts = load_prompts(path)
    assert prompts.prompts == ["1+1=", CHAT]
    assert prompts.rows[1]["answer"] == 2
    assert prompts.conversational
    assert prompts.source == str(path)


def test_saved_dataset(tmp_path):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    assert [dict(row) for row in load_prompts(tmp_path / "set").rows] == rows
    DatasetDict(test=Dataset.from_list(rows)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"several splits; give one of them: .*splits/test"):
        load_prompts(tmp_path / "splits")
    assert len(load_prompts(tmp_path / "splits" / "test")) == 2


def test_reasoning_gym():
    prompts = load_prompts("reasoning_gym:chain_sum?size=3&seed=7&min_terms=2&max_terms=2")
    reference = reasoning_gym.create_dataset("chain_sum", size=3, seed=7, min_terms=2, max_terms=2)
    assert prompts.prompts == [entry["question"] for entry in reference]
    # Tuples are lists from the start: a row that was written as JSON reads back the same.
    assert prompts.rows[2]["entry"] == json.loads(json.dumps(reference[2]))
    grids = load_prompts("reasoning_gym:arc_agi?size=1&seed=1").rows[0]["entry"]
    assert isinstance(grids["metadata"]["output"], tuple)  # its verifier takes no lists
    assert prompts.rows[2]["answer"] == reference[2]["answer"]


def test_reasoning_gym_options_are_json_or_text():
    task, options = parse_reasoning_gym_spec("reasoning_gym:t?a=1&b=true&c=x y&d=[1,2]&e=")
    assert task == "t"
    assert options == {"a": 1, "b": True, "c": "x y", "d": [1, 2], "e": ""}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("reasoning_gym:", "names no task"),
        ("reasoning_gym:chain_sm", "did you mean chain_sum"),
        ("reasoning_gym:chain_sum?size", "NAME=VALUE"),
        ("reasoning_gym:chain_sum?size=2&size=3", "sets 'size' twice"),
        ("reasoning_gym:chain_sum?sizes=3", "its options are .*size"),
        ("reasoning_gym:chain_sum?size=0", "refuses"),
        ("reasoning_gym:chain_sum?size=many", "refuses"),
    ],
)
def test_broken_specs(spec, words):
    with pytest.raises(ValueError, match=words):
        load_prompts(spec)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a JSONL file, a directory written by"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is not a directory written by save_to_disk"):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no rows"),
        (["not json"], "line 1 is not JSON"),
        ([{"prompt": "x"}, "[1]"], "line 2 is a JSON list"),
        ([{"prompt": "x"}, {"question": "y"}], "row 1 has no column 'prompt', only 'question'"),
        ([{"prompt": "x"}, {"prompt": " \n"}], "row 1 has an empty prompt"),
        ([{"prompt": []}], "row 0, prompt is empty"),
        ([{"prompt": None}], "row 0: a prompt is a string or a list of messages, got NoneType"),
        ([{"prompt": ["x"]}], "row 0: a prompt is a string or a list of messages"),
        ([{"prompt": [{"role": "user"}]}], "needs 'role' and 'content'"),
        (['{"prompt": "a\\ud83d"}'], r"row 0, prompt holds '\\ud83d', half of a character"),
        ([{"prompt": [{"role": "user", "content": "\ud83d"}]}], "message 0 holds .*half of a char"),
    ],
)
def test_broken_files(write_jsonl, rows, words):
    with pytest.raises(ValueError, match=words):
        load_prompts(write_jsonl(rows))


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_prompts(path)


def test_chat_options():
    prompts = PromptSet(({"prompt": "1+1=", "answer": "2"}, {"prompt": CHAT}))
    chat = prompts.with_chat_options(chat=True, system="Be brief.")
    assert chat.prompts == [[{"role": "system", "content": "Be brief."}, *CHAT]] * 2
    assert chat.rows[0]["answer"] == "2"
    assert chat.digest != prompts.digest


def test_tool_calls_in_a_prompt_are_what_a_reader_sees():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    prompts = PromptSet(({"prompt": [*CHAT, call, {"role": "tool", "content": "2"}]},))
    wanted = 'user: 1+1=\nassistant: [{"function": {"name": "add"}}]\ntool: 2'
    assert prompts.texts == [wanted] and prompts.user_texts == ["1+1="]


def test_a_column_may_hold_what_is_no_unicode():
    one, other = (PromptSet(({"prompt": "a", "answer": text},)) for text in ("\ud83d", "\ud83e"))
    assert one.full_digest != other.full_digest


def test_digest_is_of_the_prompts():
    rows = ({"prompt": "a", "answer": "1"},)
    assert PromptSet(rows, "x").digest == PromptSet(({"prompt": "a"},), "y").digest
    assert PromptSet(rows).digest != PromptSet(({"prompt": "b"},)).digest
