"""The task `gsm_symbolic`: word problems with worked solutions, from reasoning-gym's templates.

A hundred templates of grade-school problems are filled with other names and numbers each time, so
that there are as many problems as one likes and every one comes with its worked solution, which
ends in the line ``#### N``, where the reward ``exact_match`` looks for the answer.

    row     ``prompt`` [user message], ``completion`` [assistant message], ``answer``; or, for a
            base model and where every token of a prompt is paid for, prompt and completion as text
"""

from __future__ import annotations

from typing import Any

_DRAWS = 200  # for each problem that is asked for, before giving up
# Ends every problem of reasoning-gym's. The worked solutions show by themselves how to answer.
_INSTRUCTION = " Give the result as your final answer. Do not include units."


def gsm_symbolic_rows(
    count: int, *, seed: int, solution_characters: int, prompt_characters: int, chat: bool = True
) -> list[dict[str, Any]]:
    """The first different problems whose texts are short enough; fewer are the beginning of more.

    Args:
        count: how many, at least 1.
        seed: of reasoning-gym's generator; 0 or more.
        solution_characters: of a worked solution at most; 150 leave the shortest third of them.
        prompt_characters: of a problem at most, as reasoning-gym words it.
        chat: rows are conversations, to be rendered by a chat template. Otherwise they are text,
            ``Problem: ...`` and ``Solution:`` in front of the worked solution.

    Raises:
        ValueError: a limit that hardly any problem keeps to.

    """
    # Kept out of the module's head: reasoning-gym is an optional dependency (the extra `tasks`).
    import reasoning_gym

    # The generator draws the templates of all its problems when it is made.
    generator = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=_DRAWS * count)
    rows: dict[str, dict[str, Any]] = {}
    for index in range(_DRAWS * count):
        entry = generator[index]
        question, solution = entry["question"], entry["metadata"]["answer_cot"]
        if len(solution) <= solution_characters and len(question) <= prompt_characters:
            rows[question] = {**_texts(question, solution, chat=chat), "answer": entry["answer"]}
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(
        f"{count} problems were asked for, but {_DRAWS * count} draws gave {len(rows)} with at "
        f"most {solution_characters} characters in the solution and {prompt_characters} in the "
        "problem: raise the limits"
    )


def _texts(question: str, solution: str, *, chat: bool) -> dict[str, Any]:
    if not chat:
        problem = question.removesuffix(_INSTRUCTION)
        return {"prompt": f"Problem: {problem}\nSolution:\n", "completion": solution}
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": solution}],
    }
