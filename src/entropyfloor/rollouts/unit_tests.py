"""The reward ``unit_tests``: 1.0 where generated Python passes all of its tests, else 0.0.

The binary reward of arXiv:2606.18487, up to its scale (there 2.0). Columns: ``tests``, Python with
asserts or a list of them (``test`` is read too, HumanEval's name for it), and ``entry_point``, the
function under test, which may be left out where the tests call it by name. A row whose tests are
None gets None: the reward does not apply.

What runs is the completion's last Python block that defines the entry point, else its last one,
else all of it; text up to ``</think>`` is not looked at. A prompt (or its last message) that is
itself Python and defines the entry point, as HumanEval's do, goes before it.
"""

import ast
import atexit
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from entropyfloor.rollouts.answers import completion_text
from entropyfloor.sandbox import LocalSandbox, Program, Sandbox

_BLOCK = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {"", "python", "python3", "py"}

NEEDED = (
    "the reward unit_tests needs a column 'tests' (Python with asserts, or a list of them) or "
    "'test' with 'entry_point' (HumanEval's form) in the prompt set; add it or use another reward"
)


def unit_tests(
    completions: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    tests: Sequence[Any] | None = None,
    test: Sequence[Any] | None = None,
    entry_point: Sequence[str | None] | None = None,
    *,
    sandbox: Sandbox | None = None,
    **_: Any,
) -> list[float | None]:
    """Score 1.0 where all tests pass, 0.0 where not, None where a row has no tests.

    Equal programs of a call run once. ``sandbox``: where they run, :class:`LocalSandbox` when left
    out; :func:`unit_tests_in` fixes another for trl and the command line.

    Raises:
        ValueError: no column of tests, tests that are no Python, or no sandbox that works here.

    """
    column = tests if tests is not None else test
    if column is None:
        raise ValueError(NEEDED)
    programs: list[Program | None] = []
    for index, completion in enumerate(completions):
        source = tests_source(column[index], where=f"completion {index}")
        name = None if entry_point is None else entry_point[index]
        prompt = None if prompts is None else prompts[index]
        text = completion_text(completion)
        programs.append(None if source is None else program_of(text, prompt, source, name))
    distinct = list(dict.fromkeys(program for program in programs if program is not None))
    outcomes = (_local_sandbox() if sandbox is None else sandbox).run(distinct)
    passed = {program: outcome.passed for program, outcome in zip(distinct, outcomes, strict=True)}
    return [None if program is None else float(passed[program]) for program in programs]


def unit_tests_in(sandbox: Sandbox) -> Callable[..., list[float | None]]:
    """The reward :func:`unit_tests` in a sandbox of your choice."""

    @functools.wraps(unit_tests)  # its name, which trl asks for, and its columns, which we check
    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return unit_tests(completions, **{**columns, "sandbox": sandbox})

    return reward


def tests_source(value: Any, *, where: str) -> str | None:
    """A row's tests as one Python source; None where it has none.

    Raises:
        ValueError: it is neither text nor a list of texts, or no Python.

    """
    if value is None:
        return None
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"unit_tests: the tests of {where} are a {type(value).__name__}; give Python as a "
            "string, or a list of strings"
        )
    source = "\n".join(parts)
    try:
        compile(source, "tests", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"unit_tests: the tests of {where} are no Python: {error}") from error
    return source


def program_of(text: str, prompt: Any, tests: str, entry_point: str | None) -> Program:
    """The program that a completion and, in HumanEval's form, its prompt make."""
    code = _code_in(text.rpartition("</think>")[2], entry_point)
    start = completion_text(prompt) if prompt else ""
    if entry_point is not None and _defines(start, entry_point):
        between = "\n" if _definition(entry_point).search(code) else ""
        return Program(start + between + code, tests, entry_point, prelude=start)
    return Program(code, tests, entry_point)


def _code_in(text: str, entry_point: str | None) -> str:
    blocks = [
        code for language, code in _BLOCK.findall(text) if language.strip().lower() in _LANGUAGES
    ]
    if not blocks:
        return text
    if entry_point is not None:
        defining = [code for code in blocks if _definition(entry_point).search(code)]
        blocks = defining or blocks
    return blocks[-1]


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", re.MULTILINE)


@functools.lru_cache(maxsize=1024)
def _defines(source: str, name: str) -> bool:
    """Whether a text is Python that defines a function of this name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


@functools.cache
def _local_sandbox() -> LocalSandbox:
    sandbox = LocalSandbox()
    atexit.register(sandbox.close)
    return sandbox
