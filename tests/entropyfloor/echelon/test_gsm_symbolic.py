import pytest

from entropyfloor.echelon.gsm_symbolic import gsm_symbolic_rows
from entropyfloor.echelon.recipe import load_recipe
from entropyfloor.echelon.sources import sources
from entropyfloor.rollouts.rewards import exact_match

LIMITS = {"solution_characters": 150, "prompt_characters": 300}


def test_every_worked_solution_passes_and_a_wrong_answer_does_not():
    rows = gsm_symbolic_rows(60, seed=1, **LIMITS)
    solutions = [row["completion"][0]["content"] for row in rows]
    answers = [row["answer"] for row in rows]
    assert exact_match(solutions, answer=answers) == [1.0] * 60
    wrong = [f"{text.rpartition(' ')[0]} 123456789" for text in solutions]
    assert exact_match(wrong, answer=answers) == [0.0] * 60
    assert max(map(len, solutions)) <= 150
    assert len({row["prompt"][0]["content"] for row in rows}) == 60


def test_fewer_are_the_beginning_of_more():
    few, more = (gsm_symbolic_rows(count, seed=2, **LIMITS) for count in (5, 9))
    assert more[:5] == few


def test_as_text_the_same_problems_have_no_instruction():
    plain, chat = (gsm_symbolic_rows(9, seed=2, **LIMITS, chat=chat) for chat in (False, True))
    for text, turns in zip(plain, chat, strict=True):
        question, _, instruction = turns["prompt"][0]["content"].rpartition(" Give the result")
        assert instruction == " as your final answer. Do not include units."
        assert text == {
            "prompt": f"Problem: {question}\nSolution:\n",
            "completion": turns["completion"][0]["content"],
            "answer": turns["answer"],
        }


def test_limits_that_nothing_keeps_to():
    with pytest.raises(ValueError, match=r"draws gave 0 with at most 3 characters"):
        gsm_symbolic_rows(2, seed=0, solution_characters=3, prompt_characters=300)


def recipe(**data):
    small = {"train_problems": 6, "held_out_problems": 4, "rl_problems": 5}
    return load_recipe(
        {
            "name": "gsm",
            "model": "smollm2",
            "data": {"task": "gsm_symbolic", **small, **data},
            "depths": [1],
            "losses": {"ce": {"loss": "ce"}},
        }
    )


def test_parts_of_a_recipe_are_disjoint_and_held_out_problems_stay():
    data, more = sources(recipe(), 0), sources(recipe(train_problems=9), 0)
    parts = [data.rows, data.rl, data.test.rows]
    assert [len(part) for part in parts] == [6, 5, 4]
    prompts = [row["prompt"][0]["content"] for part in parts for row in part]
    assert len(set(prompts)) == 15
    assert more.test.rows == data.test.rows
    assert set(data.rl[0]) == {"prompt", "answer"} and set(data.rows[0]) == {"prompt", "completion"}
    assert data.max_new_tokens == 90


@pytest.mark.parametrize("name", ["held_out_problems", "solution_characters"])
def test_a_count_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"data: {name} must be at least 1; got 0"):
        sources(recipe(**{name: 0}), 0)
