from collections import Counter

import pytest

from entropyfloor.echelon.modular_sums import modular_sums, reversed_sum
from entropyfloor.rollouts.rewards import exact_match

SMALL = {"pretraining": 50, "demonstrations": 10, "rl_prompts": 20, "test": 30}


def key(row):
    return tuple(sorted(row["prompt"].rstrip("=").split("+")))


@pytest.fixture(scope="module")
def task():
    return modular_sums(seed=0)


@pytest.mark.parametrize(
    ("a", "b", "answer"), [(47, 85, "23"), (0, 0, "00"), (99, 1, "00"), (4, 3, "70")]
)
def test_answers_are_sums_mod_100_written_backwards(a, b, answer):
    assert reversed_sum(a, b) == answer


def test_the_parts_have_their_sizes_and_share_no_problem_in_either_order(task):
    parts = [task.pretraining, task.demonstrations, task.rl_prompts, task.test]
    assert [len(part) for part in parts] == [7000, 100, 600, 400]
    for rows in parts:
        assert len({row["prompt"] for row in rows}) == len(rows)
    keys = [{key(row) for row in rows} for rows in parts]
    assert [len(part) for part in keys[1:]] == [100, 600, 400]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_only_pretraining_is_noisy_and_by_the_share_asked_for(task):
    for rows in (task.demonstrations, task.rl_prompts, task.test):
        assert all(row["completion"] == row["answer"] for row in rows)
    for row in task.pretraining:
        a, b = row["prompt"].rstrip("=").split("+")
        assert row["answer"] == reversed_sum(int(a), int(b))
    # A random answer is right by chance once in a hundred; four standard errors are .024.
    wrong = sum(row["completion"] != row["answer"] for row in task.pretraining) / 7000
    assert wrong == pytest.approx(0.6 * 0.99, abs=0.024)
    clean = modular_sums(seed=0, **SMALL, random_share=0.0).pretraining
    assert all(row["completion"] == row["answer"] for row in clean)


def test_operands_come_in_either_order(task):
    first_is_smaller = Counter(
        first < second for first, second in (r["prompt"][:-1].split("+") for r in task.test)
    )
    assert min(first_is_smaller[True], first_is_smaller[False]) > 150


def test_the_seed_decides_and_the_test_problems_depend_on_nothing_else():
    one = modular_sums(seed=1, **SMALL)
    assert one == modular_sums(seed=1, **SMALL)
    assert one.test != modular_sums(seed=2, **SMALL).test
    more = modular_sums(seed=1, **{**SMALL, "demonstrations": 40, "pretraining": 90})
    assert more.test == one.test and more.rl_prompts == one.rl_prompts
    assert more.demonstrations[:10] == one.demonstrations


def test_exact_match_judges_completions_of_this_task():
    completions = ["23", "2", "", "231", "32", "2+"]
    assert exact_match(completions, answer=["23"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 0}, "test must be at least 1; got 0"),
        ({"pretraining": 0}, "pretraining must be at least 1; got 0"),
        ({"random_share": 1.5}, r"random_share must lie in \[0, 1\]; got 1.5"),
        ({"pretraining": 9999}, "9999 were asked for: ask for fewer"),
        ({"rl_prompts": 5051}, "leave 0 of the 10000 sums"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        modular_sums(seed=0, **{**SMALL, **options})
