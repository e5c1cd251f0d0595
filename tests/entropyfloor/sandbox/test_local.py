"""The pool: errors before any program runs, and an end without traces."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from leftovers import gone, processes_with

from entropyfloor.sandbox import Limits, LocalSandbox, Program, zygotes

RIGHT = Program("def f(x): return x", "assert f(1) == 1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"wall_seconds": 0}, "wall_seconds=0 must be above 0"),
        ({"cpu_seconds": -1.0}, "cpu_seconds=-1.0"),
        ({"wall_seconds": float("inf")}, "above 0 and finite"),
        ({"memory": 1}, "less than an interpreter needs: 128 MiB"),
        ({"open_files": 3}, "less than an interpreter needs: 16"),
    ],
)
def test_limits_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        Limits(**options)


def test_options_are_checked():
    with pytest.raises(ValueError, match="none of namespaces, landlock, read-only"):
        LocalSandbox(isolation="docker")
    with pytest.raises(ValueError, match="workers=0"):
        LocalSandbox(workers=0)


def test_children_need_namespaces():
    with pytest.raises(ValueError, match=r"landlock: processes=2 needs namespaces.*sandbox.md"):
        LocalSandbox(Limits(processes=2), isolation="landlock").run([RIGHT])


def test_elsewhere_it_says_so(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ValueError, match="needs Linux, this is darwin; plug another sandbox in"):
        LocalSandbox().run([RIGHT])


def test_a_harness_that_does_not_start_is_no_verdict(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ValueError, match="no isolation for generated code works here"):
        LocalSandbox().run([RIGHT])


def test_a_killed_zygote_is_replaced():
    with LocalSandbox(workers=1) as sandbox:
        assert sandbox.run([RIGHT])[0].passed
        zygote = sandbox._idle.get_nowait()
        os.kill(zygote._process.pid, signal.SIGKILL)
        sandbox._idle.put(zygote)
        assert [o.passed for o in sandbox.run([RIGHT] * 3)] == [True] * 3


def test_order_progress_and_nothing_to_run():
    seen = []
    programs = [Program(f"def f(): return {n}", "assert f() % 2 == 0") for n in range(9)]
    with LocalSandbox(workers=3) as sandbox:
        outcomes = sandbox.run(programs, progress=lambda: seen.append(1))
        assert [o.passed for o in outcomes] == [n % 2 == 0 for n in range(9)]
        assert len(seen) == 9
        assert sandbox.run([]) == []


def test_a_fork_of_the_user_gets_processes_of_its_own():
    with LocalSandbox(workers=1) as sandbox:
        assert sandbox.run([RIGHT])[0].passed
        child = os.fork()
        if child == 0:
            passed = sandbox.run([RIGHT])[0].passed
            sandbox.close()
            os._exit(0 if passed else 1)
        assert sandbox.run([RIGHT])[0].passed
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


SCRIPT = """
import sys
from entropyfloor.sandbox import LocalSandbox, Program
sandbox = LocalSandbox(isolation=sys.argv[1], workers=1)
sandbox.isolation()
print("running", flush=True)
sandbox.run([Program("import time\\nwhile True: time.sleep(1)", "assert f(1)")])
"""


def test_nothing_outlives_a_user_who_is_killed(sandbox):
    level = sandbox.isolation()[0]
    with tempfile.TemporaryDirectory(prefix="sandbox-kill-") as folder:
        os.chmod(folder, 0o755)
        command = [sys.executable, "-c", SCRIPT, level]
        user = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": folder}
        )
        assert user.stdout is not None and user.stdout.readline()
        deadline = time.monotonic() + 10
        while len(processes_with(folder)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        running = len(processes_with(folder))
        user.kill()
        user.wait()
        user.stdout.close()
        assert running >= 4  # zygote, guardian, judge, program
        assert gone(folder)
        assert os.listdir(folder) == []


def test_needs_neither_torch_nor_trl():
    code = (
        "import sys, entropyfloor.sandbox\n"
        "print(sorted({'torch', 'trl', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_bytecode_is_left_beside_installed_code(tmp_path, monkeypatch):
    package = Path(zygotes.__file__).parents[1]
    shutil.copytree(
        package / "sandbox",
        tmp_path / "entropyfloor" / "sandbox",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    monkeypatch.setattr(zygotes, "_SOURCES", str(tmp_path))
    with LocalSandbox(workers=1) as sandbox:
        assert sandbox.run([RIGHT])[0].passed
    assert list(tmp_path.rglob("*.pyc")) == []
