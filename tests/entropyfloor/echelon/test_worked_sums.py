import re

import pytest

from entropyfloor.echelon.worked_sums import draw_problems, worked_rows, worked_solutions
from entropyfloor.rollouts.rewards import reasoning_gym


@pytest.fixture(
    scope="module",
    params=[(1, True), (2, True), (2, False)],
    ids=["one digit", "two digits", "two digits, added only"],
)
def problems(request):
    digits, subtraction = request.param
    return draw_problems(80, digits=digits, subtraction=subtraction, seed=3)


def test_every_worked_solution_passes_the_verifier(problems):
    for problem in problems:
        solutions = worked_solutions(problem)
        scores = reasoning_gym(solutions, entry=[problem.entry] * len(solutions))
        assert scores == [1.0] * len(solutions), solutions


def test_a_wrong_answer_does_not_pass(problems):
    for problem in problems:
        wrong = f"{problem.expression}={problem.answer + 1}.\nAnswer: {problem.answer + 1}"
        assert reasoning_gym([wrong], entry=[problem.entry])[0] < 1.0


def test_every_equation_in_the_working_holds(problems):
    checked = 0
    for problem in problems:
        for solution in worked_solutions(problem):
            for left, right in re.findall(
                r"(-?\d+(?:[+-]\d+)+)(?:=| is )(-?\d+)", solution.partition("\n")[0]
            ):
                terms = [int(term) for term in re.findall(r"[+-]?\d+", left)]
                assert sum(terms) == int(right), solution
                checked += 1
    assert checked > 7 * len(problems)


def test_solutions_are_several_and_distinct_and_end_alike(problems):
    for problem in problems:
        solutions = worked_solutions(problem)
        assert len(set(solutions)) == len(solutions) >= 4
        assert {solution.rpartition("\n")[2] for solution in solutions} == {
            f"Answer: {problem.answer}"
        }


def test_problems_may_all_be_worked_in_the_same_way(problems):
    rows = worked_rows(problems, solutions_per_problem=1, seed=0, ways=1)
    result = [row["completion"][0]["content"] for row in rows]
    assert result == [worked_solutions(problem)[0] for problem in problems]
    two = worked_rows(problems, solutions_per_problem=3, seed=0, ways=2)
    assert len(two) == 2 * len(problems)


def test_no_two_problems_are_the_same_sum_in_another_order(problems):
    assert len({tuple(sorted(problem.terms)) for problem in problems}) == 80


def test_the_seed_decides_and_fewer_problems_are_the_beginning_of_more():
    def draw(count, seed):
        return draw_problems(count, digits=2, subtraction=True, seed=seed)

    assert draw(10, 1) == draw(10, 1) == draw(30, 1)[:10]
    assert draw(10, 1) != draw(10, 2)
    rows = worked_rows(draw(10, 1), solutions_per_problem=2, seed=5)
    assert rows == worked_rows(draw(10, 1), solutions_per_problem=2, seed=5)
    assert len(rows) == 20 and rows[0]["entry"] == draw(10, 1)[0].entry


@pytest.mark.parametrize(
    ("count", "digits", "message"),
    [(4, 3, "digits must be 1 or 2; got 3"), (3000, 1, "ask for fewer")],
)
def test_what_cannot_be_drawn_is_refused(count, digits, message):
    with pytest.raises(ValueError, match=message):
        draw_problems(count, digits=digits, subtraction=True, seed=0)


def test_without_subtraction_every_term_is_added():
    problems = draw_problems(50, digits=2, subtraction=False, seed=0)
    assert all(min(problem.terms) > 0 for problem in problems)
    assert "-" not in "".join(problems[0].expression + s for s in worked_solutions(problems[0]))
