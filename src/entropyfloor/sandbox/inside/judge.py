"""The process that holds the tests: they run here, and only calls and values cross to the program.

No statement of the program is ever executed in this process, so no trick inside its interpreter
(exiting early, atexit, patching builtins, overriding ``__eq__``, walking frames) reaches the
verdict. The verdict is written to a pipe that the other process never held.
"""

import ast
import builtins
import importlib
import linecache
import os
import socket
import sys
import traceback
import types
import unittest
from typing import Any

from entropyfloor.sandbox.inside.peer import (
    JUDGE_MODULE,
    OtherSideGone,
    Peer,
    ProgramExit,
    Remote,
)

_FILE = "tests.py"
_LONGEST_DETAIL = 2000


class Untested(Exception):
    """The tests ended without asking anything of the program."""


def judge(
    channel: socket.socket, tests: str, prelude: str, entry_point: str | None
) -> dict[str, str]:
    """Run the tests against the program at the other end of ``channel``; status and detail."""
    peer = Peer(channel, guarded=True)
    try:
        peer.request("load")
        _run(peer, tests, prelude, entry_point)
    except OtherSideGone:
        return {"status": "exited", "detail": "the program's process ended before its tests did"}
    except Untested as error:
        return {"status": "untested", "detail": str(error)}
    except ProgramExit as error:
        return {"status": "failed", "detail": f"the program raised {error}"[:_LONGEST_DETAIL]}
    except BaseException as error:
        return {"status": "failed", "detail": _describe(error)[:_LONGEST_DETAIL]}
    return {"status": "passed", "detail": ""}


def _run(peer: Peer, tests: str, prelude: str, entry_point: str | None) -> None:
    module = types.ModuleType(JUDGE_MODULE)
    sys.modules[JUDGE_MODULE] = module
    scope = module.__dict__
    exec(compile(prelude, "prelude.py", "exec"), scope)
    linecache.cache[_FILE] = (len(tests), None, tests.splitlines(keepends=True), _FILE)
    tree = ast.parse(tests, _FILE)
    touched = _bind(peer, scope, tree, entry_point)
    before = dict(scope)
    exec(compile(tree, _FILE, "exec"), scope)
    defined = {name: value for name, value in scope.items() if before.get(name) is not value}
    if entry_point is not None and isinstance(defined.get("check"), types.FunctionType):
        defined["check"](scope["candidate"])
    for name, value in defined.items():
        if name.startswith("test_") and isinstance(value, types.FunctionType):
            value()
        elif isinstance(value, type) and issubclass(value, unittest.TestCase):
            _run_case(value)
    if not touched and not peer.calls:
        raise Untested("the tests never called the program; they check nothing")


def _bind(peer: Peer, scope: dict[str, Any], tree: ast.Module, entry_point: str | None) -> bool:
    """Give the tests the program's names that they use; whether any was a plain value."""
    read, modules = _names(tree)
    for name in modules - scope.keys():
        scope[name] = importlib.import_module(name)
    wanted = {name for name in read if name not in scope and not hasattr(builtins, name)}
    entry = None if entry_point is None else ast.parse(entry_point.strip(), "entry_point", "eval")
    entry_names = (
        set() if entry is None else {n.id for n in ast.walk(entry) if isinstance(n, ast.Name)}
    )
    names = peer.request("names", sorted(wanted | entry_names))
    scope.update(names)
    if entry is not None:
        for name in sorted(entry_names - names.keys()):
            raise NameError(f"the program does not define {name}")
        scope["candidate"] = eval(compile(entry, "entry_point", "eval"), scope)
        peer.calls = 0  # making an object to test is no test
    solution = types.ModuleType("solution")
    solution.__dict__.update(names)
    sys.modules["solution"] = solution  # `from solution import f` in the tests
    return any(not isinstance(value, Remote | type) for value in names.values())


def _names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names that the tests read or import from ``solution``; those that they use as modules."""
    read, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            modules.add(node.value.id)  # `math.isclose` is the library's, never the program's
        elif isinstance(node, ast.ImportFrom) and node.module == "solution":
            read.update(alias.name for alias in node.names)
    return read, modules & sys.stdlib_module_names


def _run_case(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    for _, trace in [*result.failures, *result.errors]:
        raise AssertionError(trace)
    if result.unexpectedSuccesses:
        raise AssertionError(f"{result.unexpectedSuccesses[0]} passed; it should not")


def _describe(error: BaseException) -> str:
    """The exception, and the line of the tests that met it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == _FILE:
            return f"{text} (tests, line {frame.lineno}: {frame.line})"
    return text


def give_verdict(pipe: int, verdict: bytes) -> None:
    """Write it in one piece and end the process without running anything else."""
    os.write(pipe, verdict)
    os._exit(0)
