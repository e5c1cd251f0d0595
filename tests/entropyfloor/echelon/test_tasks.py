import re

import pytest

from entropyfloor.echelon.tasks import SumProblem, SumTask, sum_task, worked_solutions
from entropyfloor.rollouts.rewards import reasoning_gym


@pytest.fixture(
    scope="module",
    params=[(1, True), (2, True), (2, False)],
    ids=["one digit", "two digits", "two digits, added only"],
)
def task(request):
    digits, subtraction = request.param
    return sum_task(
        train_problems=60, held_out_problems=20, digits=digits, subtraction=subtraction, seed=3
    )


def test_every_worked_solution_passes_the_verifier(task):
    for problem in [*task.train, *task.held_out]:
        solutions = worked_solutions(problem)
        scores = reasoning_gym(solutions, entry=[problem.entry] * len(solutions))
        assert scores == [1.0] * len(solutions), solutions


def test_a_wrong_answer_does_not_pass(task):
    for problem in task.train:
        wrong = f"{problem.expression}={problem.answer + 1}.\nAnswer: {problem.answer + 1}"
        assert reasoning_gym([wrong], entry=[problem.entry])[0] < 1.0


def test_every_equation_in_the_working_holds(task):
    checked = 0
    for problem in task.train:
        for solution in worked_solutions(problem):
            for left, right in re.findall(
                r"(-?\d+(?:[+-]\d+)+)(?:=| is )(-?\d+)", solution.partition("\n")[0]
            ):
                terms = [int(term) for term in re.findall(r"[+-]?\d+", left)]
                assert sum(terms) == int(right), solution
                checked += 1
    assert checked > 7 * len(task.train)


def test_solutions_are_several_and_distinct_and_end_alike(task):
    for problem in task.train:
        solutions = worked_solutions(problem)
        assert len(set(solutions)) == len(solutions) >= 4
        assert {solution.rpartition("\n")[2] for solution in solutions} == {
            f"Answer: {problem.answer}"
        }


def test_problems_may_all_be_worked_in_the_same_way(task):
    rows = task.train_rows(solutions_per_problem=1, seed=0, ways=1)
    found = [row["completion"][0]["content"] for row in rows]
    assert found == [worked_solutions(problem)[0] for problem in task.train]
    two = task.train_rows(solutions_per_problem=3, seed=0, ways=2)
    assert len(two) == 2 * len(task.train)


def test_training_and_held_out_problems_share_no_sum_in_any_order(task):
    train = {tuple(sorted(problem.terms)) for problem in task.train}
    held_out = {tuple(sorted(problem.terms)) for problem in task.held_out}
    assert len(train) == 60 and len(held_out) == 20
    assert not train & held_out
    prompts = {
        row["prompt"][0]["content"] for row in task.train_rows(solutions_per_problem=3, seed=0)
    }
    assert not prompts & {row["prompt"][0]["content"] for row in task.held_out_rows()}


def test_a_task_that_would_leak_is_an_invariant_broken():
    entry = {"question": "", "answer": "6", "metadata": {}}
    one, reordered = SumProblem((1, 2, 3), entry), SumProblem((3, 1, 2), entry)
    with pytest.raises(AssertionError, match="1 held-out"):
        SumTask(train=(one,), held_out=(reordered,))


def test_the_seed_decides_and_training_size_leaves_the_held_out_problems_alone():
    def draw(train, seed):
        return sum_task(
            train_problems=train, held_out_problems=8, digits=2, subtraction=True, seed=seed
        )

    assert draw(10, 1) == draw(10, 1)
    assert draw(10, 1).held_out == draw(30, 1).held_out
    assert draw(30, 1).train[:10] == draw(10, 1).train
    assert draw(10, 1).held_out != draw(10, 2).held_out
    rows = draw(10, 1).train_rows(solutions_per_problem=2, seed=5)
    assert rows == draw(10, 1).train_rows(solutions_per_problem=2, seed=5)
    assert len(rows) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_problems": 0}, "train_problems must be at least 1; got 0"),
        ({"held_out_problems": 0}, "held_out_problems must be at least 1; got 0"),
        ({"digits": 3}, "digits must be 1 or 2; got 3"),
        ({"train_problems": 3000}, "ask for fewer"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sum_task(
            **{
                "train_problems": 4,
                "held_out_problems": 2,
                "digits": 1,
                "subtraction": True,
                "seed": 0,
                **options,
            }
        )


def test_without_subtraction_every_term_is_added():
    task = sum_task(train_problems=40, held_out_problems=10, digits=2, subtraction=False, seed=0)
    assert all(min(problem.terms) > 0 for problem in [*task.train, *task.held_out])
    assert "-" not in "".join(task.train[0].expression + s for s in worked_solutions(task.train[0]))
