"""The tests of a row for the reward ``unit_tests``, and what makes them impossible to pass.

A model must not be blamed for tests that no program passes, so they are refused with their row:
no tests at all, tests that ask nothing of the program, pytest's fixtures and parametrize (there is
no pytest in the sandbox), and imports of modules that it does not have.
"""

import ast
import builtins
import functools
import json
import symtable
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_PYTEST_ONLY = ("fixture", "parametrize")
_GIVEN = {"candidate", "solution"}  # names that the sandbox gives to tests
_ADVICE = "write the cases as asserts"


def tests_source(
    value: Any, *, where: str, entry_point: Any = None, any_module: bool = False
) -> str | None:
    """A row's tests (Python as text, a list of texts, or its JSON) as one source; None for none.

    ``where`` names the row in errors. With ``any_module`` the tests run elsewhere, where other
    modules may be installed.

    Raises:
        ValueError: it is neither, no Python, or no program can pass it.

    """
    if value is None:
        return None
    parts = [value] if isinstance(value, str) else value
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):  # a list of tests as JSON: as Python it would do nothing
            parts = json.loads(value)
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"unit_tests: the tests of {where} are a {type(value).__name__}; give Python as a "
            "string, or a list of strings"
        )
    if entry_point is not None and (
        not isinstance(entry_point, str) or entry_name(entry_point) is None
    ):
        raise ValueError(
            f"unit_tests: the entry_point of {where} is {entry_point!r}; give the name of the "
            "function under test, or an expression such as Solution().f"
        )
    source = "\n".join(parts)
    fault = _fault(source, entry_point, any_module)
    if fault is not None:
        raise ValueError(f"unit_tests: the tests of {where} {fault}")
    return source


def entry_name(entry_point: str) -> str | None:
    """The name that the program must define: ``Solution`` of ``Solution().f``; None for none."""
    try:
        node: ast.expr = ast.parse(entry_point.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


@functools.lru_cache(maxsize=4096)
def tested_names(source: str) -> frozenset[str]:
    """Names that tests use and neither define nor import: those of the program."""
    top = symtable.symtable(source, "tests", "exec")
    known = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {
        symbol.get_name()
        for table in _tables(top)
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table is top)
    }
    imported = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "solution"
        for alias in node.names
    }
    return frozenset(used - known - _GIVEN - vars(builtins).keys() | imported)


@functools.lru_cache(maxsize=4096)
def _fault(source: str, entry_point: str | None, any_module: bool) -> str | None:
    """What is wrong with tests, as a predicate of "the tests of row 3"."""
    if not source.strip():
        return "are empty; every program would do, so remove the row or give it tests"
    try:
        tree = ast.parse(source)
        compile(source, "tests", "exec")
    except (SyntaxError, ValueError) as error:
        return f"are no Python: {error}"
    for function in (node for node in tree.body if isinstance(node, _FUNCTIONS)):
        if any(name in ast.unparse(d) for d in function.decorator_list for name in _PYTEST_ONLY):
            return f"need pytest ({function.name} is a fixture or parametrized); {_ADVICE}"
        arguments = function.args
        needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
        if function.name.startswith("test_") and needed > 0:
            return (
                f"need pytest ({function.name} takes the fixture {arguments.args[0].arg}); "
                f"{_ADVICE}"
            )
    if not any_module:
        missing = sorted(name for name in _imported(tree) if not _installed(name))
        if missing:
            return (
                f"import {', '.join(missing)}, which the sandbox does not have; install it beside "
                "entropyfloor, or import the program's names from `solution`"
            )
    if not _runs_anything(tree, entry_point):
        hint = " (check(candidate) needs entry_point)" if entry_point is None else ""
        return f"run nothing{hint}; every program would do, so give asserts or test_ functions"
    if not tested_names(source) and not _uses_candidate(tree, entry_point):
        return "call nothing of the program, so they say nothing about it; call its functions"
    return None


def _runs_anything(tree: ast.Module, entry_point: str | None) -> bool:
    for node in tree.body:
        if isinstance(node, _FUNCTIONS):
            if node.name.startswith("test_") or (node.name == "check" and entry_point is not None):
                return True
        elif isinstance(node, ast.ClassDef):
            if any("TestCase" in ast.unparse(base) for base in node.bases):
                return True
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            return True
    return False


def _uses_candidate(tree: ast.Module, entry_point: str | None) -> bool:
    """Whether tests use what the sandbox binds to the entry point, or hand it on to ``check``."""
    if entry_point is None:
        return False
    handed = {"candidate"}
    for node in tree.body:
        if isinstance(node, _FUNCTIONS) and node.name == "check" and node.args.args:
            handed.add(node.args.args[0].arg)
    return any(isinstance(node, ast.Name) and node.id in handed for node in ast.walk(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Top-level names of modules that tests import without being ready for their absence."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif not isinstance(node, ast.Try):
            waiting.extend(ast.iter_child_nodes(node))


@functools.cache
def _installed(module: str) -> bool:
    """Whether the sandbox has it: the interpreter's own and its packages, not our search path."""
    if module == "solution" or module in sys.stdlib_module_names:
        return True
    homes = {sys.prefix, sys.base_prefix}
    packages = [p for p in sys.path if p and any(Path(p).is_relative_to(home) for home in homes)]
    return PathFinder.find_spec(module, packages) is not None


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
