r"""Rewards on what real files and real answers hold: one case a line, with the right value.

``expected`` is a reward, None where the reward does not apply, or "error" where the row is refused
by name before anything is spent. docs/rewards.md shows the answer formats; its rows are cases too.
"""

import json
import re
from pathlib import Path

import pytest

from entropyfloor.rollouts.answers import marked_answer
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import call_reward, check_references, reward_by_name

ROOT = Path(__file__).parents[3]
CASES = [
    json.loads(line)
    for line in (ROOT / "tests/cases/rewards.jsonl").read_text("utf-8").splitlines()
]
PROMPT = "a task"


def _score(reward, completion, columns):
    scores = call_reward(
        reward_by_name(reward),
        prompts=[PROMPT],
        completions=[completion],
        completion_ids=[[]],
        columns={name: [value] for name, value in columns.items()},
    )
    return scores[0]


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{i + 1}-{c['kind']}-{c['reward']}" for i, c in enumerate(CASES)]
)
def test_case(case):
    if case["expected"] != "error":
        assert _score(case["reward"], case["completion"], case["columns"]) == case["expected"]
        return
    right = PromptSet(({"prompt": PROMPT, **case["columns"]},), "set")
    with pytest.raises(ValueError, match="set, row 0"):
        check_references(reward_by_name(case["reward"]), right)
    with pytest.raises(ValueError, match="completion 0"):
        _score(case["reward"], case["completion"], case["columns"])


@pytest.mark.parametrize("mark", ["<answer>", "\\boxed{", "Answer:\n", "the answer is "])
def test_a_model_that_loops(mark):
    assert marked_answer(2000 * mark + "7") == "7"


def _documented_formats():
    table = (ROOT / "docs/rewards.md").read_text("utf-8").partition("## Answer formats")[2]
    for line in table.partition("\n## ")[0].splitlines():
        cells = re.findall(r"(`+) ?(.+?) ?\1(?!`)", line)
        if line.startswith("|") and len(cells) == 2:
            yield tuple(text.replace("⏎", "\n") for _, text in cells)


@pytest.mark.parametrize(("text", "answer"), _documented_formats())
def test_each_documented_format(text, answer):
    assert marked_answer(text) == answer
    for before in ("", "Answer: 7\n\n", "\\boxed{7} and so\n"):  # the last one wins
        assert _score("exact_match", before + text, {"answer": answer}) == 1.0
        assert _score("exact_match", before + text, {"answer": "7"}) == 0.0


def test_the_document_has_the_formats():
    assert len(list(_documented_formats())) >= 12
