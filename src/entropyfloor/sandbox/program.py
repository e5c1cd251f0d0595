"""What goes into a sandbox and what comes out; the seam where another sandbox is plugged in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

MIB = 1 << 20

Status = Literal["passed", "failed", "exited", "timeout", "output", "disk", "untested"]


@dataclass(frozen=True)
class Program:
    """Code that a model wrote, and the tests that it must pass.

    Args:
        code: the whole program, untrusted.
        tests: trusted Python. Its asserts run, then ``check(candidate)`` if it defines ``check``
            and there is an entry point (HumanEval's form), its functions ``test_*()`` and its
            ``unittest.TestCase`` classes. Names that it uses and does not define are the program's.
        entry_point: name of the function under test, or an expression on the program's names such
            as ``Solution().f``; the tests know its value as ``candidate``.
        prelude: trusted Python that the tests build on, such as HumanEval's prompt: its names, the
            entry point excepted, go before the program's, so a program cannot replace a helper.

    """

    code: str
    tests: str
    entry_point: str | None = None
    prelude: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one program.

    ``status``: passed; failed (an assert, or any exception); exited (its process ended before the
    tests did); timeout (CPU or wall time); output or disk (wrote more than allowed); untested (the
    tests ended without asking anything of the program). ``output`` is the start of what the
    program printed, at most 8 KiB.
    """

    status: Status
    detail: str = ""
    output: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.status == "passed"


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 10.0  # from its start to its verdict
    cpu_seconds: float = 5.0  # CPU time of a process, rounded up to whole seconds
    memory: int = 1024 * MIB  # bytes of address space of a process
    disk: int = 64 * MIB  # bytes in its temporary folder
    output: int = MIB  # bytes of standard output and error together
    open_files: int = 64  # file descriptors
    processes: int = 1  # 1 denies child processes; more needs namespaces, and counts threads too

    def __post_init__(self) -> None:
        """Refuse what no program could run under."""
        for name in ("wall_seconds", "cpu_seconds", "disk", "output", "processes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and finite")
        if self.memory < 128 * MIB:
            raise ValueError(f"memory={self.memory} is less than an interpreter needs: 128 MiB")
        if self.open_files < 16:
            raise ValueError(f"open_files={self.open_files} is less than an interpreter needs: 16")


class Sandbox(Protocol):
    """Anything that runs programs against their tests: ours, a container, a remote service."""

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """One outcome per program, in their order."""
        ...
