"""The task `worked_sums`: reasoning-gym's three-term sums with several worked solutions each.

A problem is ``a + b + c``, or ``a ± b ± c``. Each can be worked in several orders (left to right,
outer terms first, the last two first, tens and units apart) and wordings, and every worked solution
ends in the line ``Answer: N``, which reasoning-gym's own verifier judges. Training on several of
them is where keeping entropy has a meaning: there is more than one right way to continue.

    problem    a reasoning-gym entry; no two are the same sum in another order
    row        one per worked solution: ``prompt`` [user message], ``completion`` [assistant
               message], and reasoning-gym's ``entry``, which the reward ``reasoning_gym`` reads
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Draws in a row without a new problem before giving up: then less than about 1 in 1000 is left.
_FRUITLESS_DRAWS = 1000


@dataclass(frozen=True)
class SumProblem:
    """One three-term sum."""

    terms: tuple[int, int, int]  # the three terms with their signs; the first is never negative
    entry: dict[str, Any]  # reasoning-gym's entry (question, answer, metadata), for its verifier

    @property
    def expression(self) -> str:
        """As in ``42-25+7``."""
        return _chain(self.terms)

    @property
    def answer(self) -> int:
        """The sum."""
        return sum(self.terms)

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for two problems that differ in the order of their terms only."""
        return tuple(sorted(self.terms))

    @property
    def prompt(self) -> list[dict[str, str]]:
        """One user message."""
        text = f'Work out {self.expression}. Then write "Answer:" and the number.'
        return [{"role": "user", "content": text}]


def draw_problems(count: int, *, digits: int, subtraction: bool, seed: int) -> list[SumProblem]:
    """The first problems of reasoning-gym's ``chain_sum`` that reorder no earlier one.

    Args:
        count: how many, at least 1; fewer are the beginning of more.
        digits: digits of each term: 1 or 2.
        subtraction: whether the second and third term may be subtracted.
        seed: of reasoning-gym's generator; 0 or more.

    Raises:
        ValueError: a count below 1, another number of digits, or more problems than exist.

    """
    if digits not in (1, 2):
        raise ValueError(f"digits must be 1 or 2; got {digits}")
    # Kept out of the module's head: reasoning-gym is an optional dependency (the extra `tasks`).
    import reasoning_gym

    generator = reasoning_gym.create_dataset(
        "chain_sum",
        seed=seed,
        min_terms=3,
        max_terms=3,
        min_digits=digits,
        max_digits=digits,
    )
    problems: dict[tuple[int, ...], SumProblem] = {}
    index = last_new = 0
    while len(problems) < count:
        entry = generator[index]
        problem = SumProblem(_terms(entry["metadata"]["expression"]), entry)
        # reasoning-gym draws the signs itself and cannot be told to add only.
        wanted = subtraction or min(problem.terms) >= 0
        if wanted and problem.key not in problems:
            problems[problem.key] = problem
            last_new = index
        index += 1
        if index - last_new > _FRUITLESS_DRAWS:
            raise ValueError(
                f"{count} different problems were asked for (training and held-out together), but "
                f"{index} draws of sums with {digits} digit(s) gave {len(problems)}: ask for fewer"
            )
    return list(problems.values())


def worked_rows(
    problems: Sequence[SumProblem],
    *,
    solutions_per_problem: int,
    seed: int,
    ways: int | None = None,
) -> list[dict[str, Any]]:
    """So many different worked solutions of each problem, or all that it has; a row each.

    Args:
        problems: in the rows' order.
        solutions_per_problem: rows per problem.
        seed: of the choice.
        ways: choose among the first so many of a problem's solutions, which are in the same order
            for all: with 1 every problem is worked in the same way.

    """
    rng = random.Random(f"{seed}:rows")
    return [
        {
            "prompt": problem.prompt,
            "completion": [{"role": "assistant", "content": solution}],
            "entry": problem.entry,
        }
        for problem in problems
        for solution in _sample(worked_solutions(problem)[:ways], solutions_per_problem, rng)
    ]


def _terms(expression: str) -> tuple[int, int, int]:
    """``"42 - 25 + 7"`` -> ``(42, -25, 7)``."""
    first, sign_b, b, sign_c, c = expression.split()
    return int(first), int(sign_b + b), int(sign_c + c)


def worked_solutions(problem: SumProblem) -> list[str]:
    """Every worked solution we know for a problem, no two equal; all end in ``Answer: N``.

    Two-digit problems have one more than one-digit ones (tens and units), unless terms coincide.
    """
    a, b, c = problem.terms
    total = problem.answer
    left, outer, last = a + b, a + c, b + c
    workings = [
        f"{_chain((a, b))}={left}, {_chain((left, c))}={total}.",
        f"{_chain((a, c))}={outer}, {_chain((outer, b))}={total}.",
        f"{_chain((b, c))}={last}, {_chain((a, last))}={total}.",
        f"First {_chain((a, b))} is {left}. Then {_chain((left, c))} is {total}.",
        f"Start at {a}. {_step(b)} gives {left}. {_step(c)} gives {total}.",
    ]
    if max(abs(term) for term in problem.terms) > 9:
        tens = [int(term / 10) * 10 for term in problem.terms]
        units = [term - ten for term, ten in zip(problem.terms, tens, strict=True)]
        workings.append(
            f"Tens: {_chain(tens)}={sum(tens)}. Units: {_chain(units)}={sum(units)}. "
            f"{_chain((sum(tens), sum(units)))}={total}."
        )
    return [f"{working}\nAnswer: {total}" for working in dict.fromkeys(workings)]


def _chain(terms: Sequence[int]) -> str:
    """``(42, -25, 7)`` -> ``"42-25+7"``."""
    return f"{terms[0]}" + "".join(f"{term:+d}" for term in terms[1:])


def _step(term: int) -> str:
    return f"Add {term}" if term >= 0 else f"Subtract {-term}"


def _sample(solutions: list[str], count: int, rng: random.Random) -> list[str]:
    return rng.sample(solutions, min(count, len(solutions)))
