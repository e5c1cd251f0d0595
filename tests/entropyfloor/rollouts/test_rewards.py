import json

import pytest

from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rewards import (
    call_reward,
    check_reward_columns,
    exact_match,
    reasoning_gym,
    reward_by_name,
)


def _assistant(text):
    return [{"role": "assistant", "content": text}]


def test_reasoning_gym_asks_the_tasks_verifier():
    rows = load_prompts("reasoning_gym:chain_sum?size=2&seed=3").rows
    right = str(rows[0]["answer"])
    completions = [f"3 + 4 = 7\nAnswer: {right}", right, _assistant("no idea"), ""]
    entries = [rows[0]["entry"], json.dumps(rows[0]["entry"]), rows[1]["entry"], rows[1]["entry"]]
    scores = reasoning_gym(completions, entry=entries)
    assert scores[:2] == [1.0, 1.0]
    assert max(scores[2:]) < 1.0


def test_an_answer_that_the_verifier_cannot_parse_is_wrong(monkeypatch):
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    def fails(self, answer, entry):
        if answer == "1/0":
            raise ZeroDivisionError
        return 1.0

    monkeypatch.setattr(ChainSumDataset, "score_answer", fails)
    rows = load_prompts("reasoning_gym:chain_sum?size=1").rows
    assert reasoning_gym(["1/0"], entry=[rows[0]["entry"]]) == [0.0]


def test_reasoning_gym_needs_the_tasks_name():
    with pytest.raises(ValueError, match=r"metadata.source_dataset"):
        reasoning_gym(["1"], entry=[{"question": "q", "answer": "a", "metadata": {}}])


def test_columns_are_checked_for_every_row():
    prompts = PromptSet(({"prompt": "a", "answer": "1"}, {"prompt": "b"}), "set")
    with pytest.raises(ValueError, match=r"needs a column 'answer' .* \(set, row 1 has none\)"):
        check_reward_columns(exact_match, prompts)
    with pytest.raises(ValueError, match="needs a column 'entry'"):
        check_reward_columns(reasoning_gym, prompts)
    with pytest.raises(ValueError, match="needs a column 'solution' or 'answer'"):
        check_reward_columns(reward_by_name("math"), prompts)
    check_reward_columns(lambda **_: [], prompts)


def test_by_name():
    assert reward_by_name("exact_match") is exact_match
    assert reward_by_name("json:dumps") is json.dumps


def test_math_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'entropyfloor\[math\]'"):
        check_reward_columns(reward_by_name("math"), PromptSet(({"prompt": "1", "answer": "1"},)))


def test_by_name_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_for_a_test.py").write_text("def one(completions, **_):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert reward_by_name("my_rewards_for_a_test:one")(completions=[]) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "exactmatch",
            "unknown reward 'exactmatch'; give exact_match, math, reasoning_gym, unit_tests or mod",
        ),
        (":x", "unknown reward"),
        ("json:", "unknown reward"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("json:no_such_function", "json has no function 'no_such_function'"),
        ("json:__doc__", "has no function"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(ValueError, match=words):
        reward_by_name(name)


def _call(values):
    def reward(completions, **_):
        return values

    return call_reward(
        reward, prompts=["p"] * 2, completions=["c"] * 2, completion_ids=[[1]] * 2, columns={}
    )


def test_returned_values():
    assert _call([1, None]) == [1.0, None]
    assert _call((True, 0.5)) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "reward reward returned 1 values for 2 completions"),
        ([1.0, float("nan")], "returned nan for completion 1"),
        ([float("inf"), 0.0], "returned inf for completion 0"),
        ([1.0, "good"], "returned 'good' for completion 1"),
        (1.0, "returned a float; it must return a list"),
        (None, "returned a NoneType"),
    ],
)
def test_broken_returns(values, words):
    with pytest.raises(ValueError, match=words):
        _call(values)


def test_reasoning_gym_is_never_below_its_own_scorer():
    """On the gold answer of every task, in the format that its own system prompts ask for."""
    factory = pytest.importorskip("reasoning_gym.factory")
    from reasoning_gym.utils import extract_answer

    tasks = sorted(set(factory.DATASETS) - {"composite", "knight_swap", "rearc"})  # no task; slow
    scored = 0
    for task in tasks:
        dataset = factory.create_dataset(task, size=1, seed=7)
        entry = dataset[0]
        if not isinstance(entry["answer"], str):
            continue
        for text in (
            f"<think>\nstep by step, Answer: 0\n</think>\n<answer>{entry['answer']}</answer>\n",
            f"It is so.\n<answer>\n{entry['answer']}\n</answer>",
            f"<answer>\n{entry['answer']}  with more\n</answer>",
        ):
            try:
                own = dataset.score_answer(extract_answer(text), entry)
            except Exception:
                own = 0.0
            assert reasoning_gym([text], entry=[entry])[0] >= own, (task, text)
            scored += 1
    assert scored > 250
