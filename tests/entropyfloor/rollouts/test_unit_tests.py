import json
import warnings

import pytest

from entropyfloor.cli.main import main
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import check_reward_columns, reward_by_name
from entropyfloor.rollouts.unit_tests import program_of, unit_tests, unit_tests_in
from entropyfloor.sandbox import LocalSandbox, Outcome, Program

PROMPT = "def helper(x):\n    return x\n\n\ndef f(x):\n    '''One more.'''\n"
TESTS = "def check(candidate):\n    assert candidate(1) == 2\n"


class Recorder:
    def __init__(self):
        self.programs = []

    def run(self, programs):
        self.programs += programs
        return [Outcome("passed" if "right" in p.code else "failed") for p in programs]


def _chat(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x): ...", "def f(x): ..."),
        ("Sure.\n```python\na = 1\n```\nDone.", "a = 1\n"),
        ("```\na = 1\n```\n```py\nb = 1\n```", "b = 1\n"),
        ("```python\ndef f(): ...\n```\nUse it:\n```python\nf()\n```", "def f(): ...\n"),
        ("```python\na = 1\n```\n```bash\nls\n```", "a = 1\n"),
        ("```python\na = 1\n", "a = 1\n"),
        ("1. So:\n   ```python\n   a = 1\n   ```\n", "a = 1\n"),
        ("<think>```python\nwrong\n```</think>```python\nno start of line\n```", None),
        ("<think>\n```python\nwrong\n```\n</think>\n```python\na = 1\n```", "a = 1\n"),
        ("```python\ns = '```'\n```\n", "s = '```'\n"),
        ("a\n```js\nb\n```", "a\n```js\nb\n```"),
    ],
)
def test_the_code_in_a_completion(text, code):
    found = program_of(text, "Write f.", "assert f", "f").code
    assert found == code if code is not None else "wrong" not in found


def test_what_python_thinks_of_a_models_strings_is_not_said():
    text = "```python\ndef f(): return '\\d'\n```\n```python\nf()\n```"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # by which this would be no Python
        assert program_of(text, "Write f.", "assert f()", None).code.startswith("def f()")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        program_of(text.replace("f()", "g()"), "Write g.", "assert g()", None)
    assert not said


def test_human_evals_form():
    body = program_of("    return x + 1\n", PROMPT, TESTS, "f")
    assert body == Program(PROMPT + "    return x + 1\n", TESTS, "f", prelude=PROMPT)
    whole = program_of("```python\ndef f(x):\n    return 2\n```", PROMPT, TESTS, "f")
    assert whole.code == PROMPT + "\ndef f(x):\n    return 2\n"
    asked = [{"role": "user", "content": PROMPT}]
    assert program_of("def f(x):\n    return 2", asked, TESTS, "f").prelude == PROMPT
    prose = program_of("def f(x):\n    return 2", "Write f", TESTS, "f")
    assert prose == Program("def f(x):\n    return 2", TESTS, "f")


def test_rewards_of_real_programs():
    right, wrong = "def f(x):\n    return x + 1", "def f(x):\n    return x"
    with LocalSandbox(workers=2) as sandbox:
        reward = unit_tests_in(sandbox)
        scores = reward(
            completions=[right, _chat(f"```python\n{wrong}\n```"), "    return x + 1", "no", right],
            prompts=["Write f."] * 2 + [PROMPT] + ["Write f."] * 2,
            completion_ids=[[]] * 5,
            tests=["assert f(1) == 2", ["assert f(1) == 1", "assert f(1) == 2"], TESTS, "f", None],
            entry_point=[None, None, "f", None, None],
            trainer_state=None,
        )
    assert scores == [1.0, 0.0, 1.0, 0.0, None]
    assert reward.__name__ == "unit_tests"  # trl's name of the reward in its logs


def test_the_default_sandbox():
    assert unit_tests(["def f(): return 1"], tests=["assert f() == 1"]) == [1.0]


def test_equal_programs_run_once():
    recorder = Recorder()
    scores = unit_tests(
        ["right", "wrong", "right"], test=["assert f()"] * 3, sandbox=recorder, prompts=["p"] * 3
    )
    assert scores == [1.0, 0.0, 1.0]
    assert [p.code for p in recorder.programs] == ["right", "wrong"]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"needs a column 'tests' .*'test' with 'entry_point'"):
        unit_tests(["x"], prompts=["p"], answer=["2"])
    with pytest.raises(ValueError, match="tests of completion 1 are a int"):
        unit_tests(["x", "y"], tests=["assert x", 3])
    rows = [{"prompt": "a", "tests": "assert f()"}, {"prompt": "b"}]
    named = reward_by_name("unit_tests")
    for reward in (named, unit_tests_in(Recorder())):
        with pytest.raises(ValueError, match=r"column 'tests' .* \(set, row 1 has none\)"):
            check_reward_columns(reward, PromptSet(tuple(rows), "set"))
    broken = PromptSet(({"prompt": "a", "tests": ["assert f("]},), "set")
    with pytest.raises(ValueError, match="tests of set, row 0 are no Python: '\\('"):
        check_reward_columns(named, broken)
    check_reward_columns(named, PromptSet(({"prompt": "a", "test": TESTS, "entry_point": "f"},)))


def test_screen(save_checkpoint, write_jsonl, tmp_path, capsys):
    checkpoint = str(save_checkpoint())
    rows = [{"prompt": "a", "tests": "assert f() == 1"}] * 2
    options = ["--reward", "unit_tests", "--num_samples", "8", "--max-new-tokens", "4"]
    target = tmp_path / "report.json"
    code = main(
        ["screen", checkpoint, "--prompts", str(write_jsonl(rows)), *options, "--json", str(target)]
    )
    assert code in {0, 3}
    assert json.loads(target.read_text())["checkpoints"][0]["pass_at_k"]["1"] == 0.0
    bad = write_jsonl([{"prompt": "a", "answer": "1"}], "bad.jsonl")
    assert main(["screen", checkpoint, "--prompts", str(bad), *options]) == 2
    assert "the reward unit_tests needs a column 'tests'" in capsys.readouterr().err
