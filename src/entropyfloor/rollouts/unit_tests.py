"""The reward ``unit_tests``: 1.0 where generated Python passes all of its tests, else 0.0.

The binary reward of arXiv:2606.18487, up to its scale (there 2.0). Columns: ``tests``, Python with
asserts or a list of them (``test`` is read too, HumanEval's name for it), and ``entry_point``, the
function under test, which may be left out where the tests call it by name. A row whose tests are
None gets None: the reward does not apply.

What runs is the completion's last Python block (CommonMark, see :func:`code_in`) that defines what
is tested, else its last one, else all of it; text up to ``</think>`` is not looked at. A prompt (or
its last message) that is itself Python and defines the entry point, as HumanEval's do, goes before
it. Where a row carries a reference solution, it runs first; a row whose reference fails gets None.
"""

import ast
import atexit
import functools
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from entropyfloor.rollouts.answers import after_thinking, completion_text
from entropyfloor.rollouts.unit_test_source import entry_name, tested_names, tests_source
from entropyfloor.sandbox import LocalSandbox, Program, Sandbox

# Columns that may hold a reference solution: HumanEval's name, ours, the usual one and MBPP's.
REFERENCE_COLUMNS = ("canonical_solution", "reference_solution", "solution", "code")

_COLUMNS = ("prompt", "tests", "test", "entry_point", *REFERENCE_COLUMNS)

# As CommonMark has it; then with any indentation and without lists, for models that get it wrong.
# A line `<answer>` does not begin HTML that would swallow a fence.
_MARKDOWN = [
    MarkdownIt("commonmark").disable(["html_block", *rules])
    for rules in ((), ("code",), ("code", "list", "blockquote"))
]
_PYTHON = re.compile(r"i?py(?:thon)?[0-9.]*")

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
    **columns: Any,
) -> list[float | None]:
    """Score 1.0 where all tests pass, 0.0 where not.

    None where a row has no tests, or where its reference solution (a column of
    :data:`REFERENCE_COLUMNS`) does not pass them. Equal programs of a call run once, a reference
    once in this process. ``sandbox``: where they run, :class:`LocalSandbox` when left out;
    :func:`unit_tests_in` fixes another for trl and the command line.

    Raises:
        ValueError: no column of tests, tests that no program can pass, or no sandbox that works
            here.

    """
    if tests is None and test is None:
        raise ValueError(NEEDED)
    columns |= {"prompt": prompts, "tests": tests, "test": test, "entry_point": entry_point}
    programs: list[Program | None] = []
    references: list[Program | None] = []
    for index, completion in enumerate(completions):
        row = {n: columns[n][index] for n in _COLUMNS if columns.get(n) is not None}
        source = row_tests(row, where=f"completion {index}", any_module=sandbox is not None)
        solution = reference_solution(row, where=f"completion {index}")
        for text, made in ((completion_text(completion), programs), (solution, references)):
            made.append(
                None
                if source is None or text is None
                else program_of(text, row.get("prompt"), source, row.get("entry_point"))
            )
    chosen = _local_sandbox() if sandbox is None else sandbox
    known = _REFERENCES.setdefault(id(chosen), (chosen, {}))[1]
    untried = [program for program in references if program is not None and program not in known]
    distinct = list(dict.fromkeys([*untried, *(p for p in programs if p is not None)]))
    outcomes = chosen.run(distinct)
    passed = {program: outcome.passed for program, outcome in zip(distinct, outcomes, strict=True)}
    known.update((program, passed[program]) for program in untried)
    return [
        None
        if program is None or (reference is not None and not known[reference])
        else float(passed[program])
        for program, reference in zip(programs, references, strict=True)
    ]


# Whether reference solutions passed: id of a sandbox -> the sandbox, which keeps its id, and them.
_REFERENCES: dict[int, tuple[Sandbox, dict[Program, bool]]] = {}


def row_tests(row: Mapping[str, Any], *, where: str, any_module: bool = False) -> str | None:
    """The tests of a row, of column ``tests``, else ``test``; see :func:`tests_source`."""
    value = row.get("test") if row.get("tests") is None else row["tests"]
    return tests_source(
        value, where=where, entry_point=row.get("entry_point"), any_module=any_module
    )


def reference_solution(row: Mapping[str, Any], *, where: str = "a row") -> str | None:
    """A row's reference solution: the first of :data:`REFERENCE_COLUMNS` that is one.

    That is Python that defines what is tested, or in HumanEval's form the body of its function.
    """
    tests = row_tests(row, where=where, any_module=True)
    for column in REFERENCE_COLUMNS:
        text = row.get(column)
        if tests is None or not isinstance(text, str):
            continue
        wanted = _wanted(tests, row.get("entry_point"))
        program = program_of(text, row.get("prompt"), tests, row.get("entry_point"))
        body = program.prelude and code_in(text)[:1].isspace()
        defines = body or _definitions(code_in(text, wanted), wanted)
        if defines and _tree(program.code) is not None:
            return text
    return None


def unit_tests_in(sandbox: Sandbox) -> Callable[..., list[float | None]]:
    """The reward :func:`unit_tests` in a sandbox of your choice."""

    @functools.wraps(unit_tests)  # its name, which trl asks for, and its columns, which we check
    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return unit_tests(completions, **{**columns, "sandbox": sandbox})

    return reward


def program_of(text: str, prompt: Any, tests: str, entry_point: str | None) -> Program:
    """The program that a completion and, in HumanEval's form, its prompt make."""
    name = None if entry_point is None else entry_name(entry_point)
    code = code_in(after_thinking(text), _wanted(tests, entry_point))
    start = completion_text(prompt) if prompt else ""
    if name is not None and _defines(start, name):
        between = "\n" if _definitions(code, {name}) else ""
        return Program(start + between + code, tests, entry_point, prelude=start)
    return Program(code, tests, entry_point)


def _wanted(tests: str, entry_point: str | None) -> frozenset[str]:
    """The names that a program must define: the entry point's, else those that the tests use."""
    name = None if entry_point is None else entry_name(entry_point)
    return tested_names(tests) if name is None else frozenset({name})


def code_in(text: str, wanted: Collection[str] = ()) -> str:
    """The last Python block of a Markdown text that defines most of what is wanted.

    Blocks are fences of any length, of ``~~~`` too, in lists and quotes, closed or cut off, said to
    be Python or nothing. Without one it is the text as it is.
    """
    if "```" not in text and "~~~" not in text:
        return text
    best = None
    for markdown in _MARKDOWN:
        blocks = [
            (language, token.content)
            for token in markdown.parse(text)
            if token.type == "fence" and (language := _language(token.info)) is not None
        ]
        if not any(code.strip() for _, code in blocks):
            continue
        _, _, _, code = max(
            (_definitions(code, wanted), language == "python", number, code)
            for number, (language, code) in enumerate(blocks)
        )
        if _tree(code) is not None:
            return code
        best = best or code
    return text if best is None else best


def _language(info: str) -> str | None:
    """Language of an info string: ``python``, empty where it names none, None for another.

    Python is written python, Python3, py, ``{.python}``, python:main.py, python title="x".
    """
    words = re.findall(r"[\w.+#-]+=?", info.lower())
    if not words or words[0].endswith("="):
        return ""
    named = words if info.lstrip().startswith("{") else words[:1]
    return "python" if any(_PYTHON.fullmatch(word.lstrip(".")) for word in named) else None


def _definitions(code: str, names: Collection[str]) -> int:
    """How many of the names a program defines, broken programs included."""
    return sum(
        re.search(
            rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=",
            code,
            re.MULTILINE,
        )
        is not None
        for name in names
    )


def _defines(source: str, name: str) -> bool:
    """Whether a text is Python that defines a function or class of this name."""
    tree = _tree(source)
    return tree is not None and any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name for node in tree.body
    )


@functools.lru_cache(maxsize=1024)
def _tree(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a model writes "\\d" is no news to its user
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@functools.cache
def _local_sandbox() -> LocalSandbox:
    sandbox = LocalSandbox()
    atexit.register(sandbox.close)
    return sandbox
