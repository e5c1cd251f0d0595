"""Each row's own reference is scored before anything is spent; the rows that fail are named."""

import warnings

import pytest

from entropyfloor.cli.main import main
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import check_references, reward_by_name
from entropyfloor.rollouts.unit_tests import unit_tests_in
from entropyfloor.sandbox import Outcome

TASK = {"source_dataset": "chain_sum"}
TESTS = "def check(candidate):\n    assert candidate(1) == 2"
HUMAN_EVAL = {"prompt": "def f(x):\n    '''One more.'''\n", "test": TESTS, "entry_point": "f"}
CASES = {
    "math": (
        [{"answer": r"2\sqrt{3}"}, {"answer": r"\frac{"}, {"solution": "", "answer": "4"}],
        "1 of 3 rows have a reference that math-verify cannot read, first answer=.*; rows 1",
    ),
    "reasoning_gym": (
        [
            {"entry": {"question": "1 + 1", "answer": "2", "metadata": TASK}},
            {"entry": {"question": "1 + 1", "answer": "", "metadata": TASK}},
            {"entry": {"question": "1 + 1", "answer": None, "metadata": TASK}},
        ],
        "1 of 3 rows have an answer that their own verifier refuses.*; rows 1",
    ),
    "unit_tests": (
        [
            HUMAN_EVAL | {"canonical_solution": "    return x + 1\n"},
            HUMAN_EVAL | {"canonical_solution": "    return x\n"},
            {"tests": ["assert f(1) == 2"], "code": "```python\ndef f(x): return x + 1\n```"},
            {"tests": ["assert f(1) == 2"], "solution": "add one"},
        ],
        "1 of 4 rows have a reference solution that fails their own tests, first canon.*; rows 1",
    ),
}


def _prompts(rows):
    return PromptSet(tuple({"prompt": "task", **row} for row in rows), "set")


@pytest.mark.parametrize("name", CASES)
def test_rows_whose_reference_fails_are_named(name):
    rows, words = CASES[name]
    with pytest.warns(UserWarning, match=f"{words}.*over the other {len(rows) - 1}"):
        assert check_references(reward_by_name(name), _prompts(rows)) == [1]
    with pytest.raises(ValueError, match="No prompt is left"):
        check_references(reward_by_name(name), _prompts(rows[1:2] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_references(reward_by_name(name), _prompts([rows[0], *rows[2:]])) == []


def test_conversations_and_rewards_of_others():
    chat = [{"role": "user", "content": "6 x 7?"}]
    prompts = PromptSet(({"prompt": chat, "answer": 42.0},))
    assert check_references(reward_by_name("exact_match"), prompts) == []
    assert check_references(lambda **_: 1 / 0, prompts) == []


def test_a_reference_solution_runs_once_in_its_own_sandbox():
    class Recorder:
        def __init__(self):
            self.codes = []

        def run(self, programs):
            self.codes += [program.code for program in programs]
            return [Outcome("passed" if "+ 1" in each.code else "failed") for each in programs]

    sandbox = Recorder()
    reward = unit_tests_in(sandbox)
    rows = [{"tests": ["import no_such_module\nassert f()"], "code": "def f(): return 0 + 1"}]
    assert check_references(reward, _prompts(rows)) == []
    assert sandbox.codes == ["def f(): return 0 + 1"]
    columns = {"tests": [rows[0]["tests"]], "code": [rows[0]["code"]]}
    assert reward(["def f(): return 2"], **columns) == [0.0]
    assert sandbox.codes[1:] == ["def f(): return 2"]


def test_screening_says_over_how_many_prompts(save_checkpoint, write_jsonl, capsys):
    rows = [{"prompt": "a", "answer": "4"}, {"prompt": "b", "answer": r"\frac{"}]
    options = ["--num_samples", "8", "--max-new-tokens", "4", "--reward", "math"]
    checkpoint = str(save_checkpoint())
    with pytest.warns(UserWarning, match="1 of 2 rows have a reference that math-verify"):
        code = main(["screen", checkpoint, "--prompts", str(write_jsonl(rows)), *options])
    assert code in {0, 3}
    assert "pass rates are over 1 of 2 prompts" in capsys.readouterr().out
    bad = str(write_jsonl(rows[1:], "bad.jsonl"))
    assert main(["screen", "no/such/checkpoint", "--prompts", bad, *options]) == 2
    assert "No prompt is left" in capsys.readouterr().err
