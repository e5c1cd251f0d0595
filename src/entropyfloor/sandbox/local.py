"""The sandbox on this machine: a bounded number of zygotes, each with one program at a time."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from entropyfloor.sandbox.program import Limits, Outcome, Program
from entropyfloor.sandbox.zygotes import Zygote, ZygoteError

LEVELS = ("namespaces", "landlock", "read-only")
_TRIAL = Program(code="def f(x):\n    return x + 1", tests="assert f(1) == 2")


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalSandbox:
    """Runs programs in processes of their own on Linux, confined as far as the kernel allows.

    Processes start with the first program. Safe to call from several threads; they share the
    workers. Usable as a context manager.

    Args:
        limits: what one program may use.
        workers: programs at a time; as many as this process may use CPUs when left out.
        isolation: "namespaces", "landlock" or "read-only" to insist on one; the first of them that
            works here when left out.

    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        workers: int | None = None,
        isolation: str | None = None,
    ) -> None:
        if isolation is not None and isolation not in LEVELS:
            raise ValueError(f"isolation={isolation!r} is none of {', '.join(LEVELS)}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self.limits = Limits() if limits is None else limits
        self.workers = _cpus() if workers is None else workers
        self._levels = LEVELS if isolation is None else (isolation,)
        self._level: str | None = None
        self._idle: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(self.workers)
        self._choosing = threading.Lock()
        self._owner = os.getpid()

    def run(
        self, programs: Sequence[Program], *, progress: Callable[[], object] | None = None
    ) -> list[Outcome]:
        """Run programs; one outcome each, in their order.

        Args:
            programs: what to run.
            progress: called after each program.

        Raises:
            ValueError: this machine allows no isolation that would do.
            RuntimeError: the harness failed twice on a program. That is no outcome of a program.

        """
        if not programs:
            return []
        self.isolation()

        def one(program: Program) -> Outcome:
            outcome = self._run_one(program)
            if progress is not None:
                progress()
            return outcome

        if len(programs) == 1:
            return [one(programs[0])]
        with ThreadPoolExecutor(min(self.workers, len(programs))) as threads:
            return list(threads.map(one, programs))

    def isolation(self) -> list[str]:
        """Which protections are active, in words; the first is the level's name.

        Raises:
            ValueError: none that would do; the message says what failed.

        """
        with self._choosing:
            self._forget_a_parents_processes()
            if self._level is None:
                self._choose()
            zygote = self._take()
            self._idle.put(zygote)
            return [str(self._level), *zygote.words]

    def close(self) -> None:
        """End all idle zygotes; the next program starts new ones."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def __enter__(self) -> "LocalSandbox":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _run_one(self, program: Program) -> Outcome:
        with self._slots:
            failure = None
            for _ in range(2):
                zygote = self._take()
                try:
                    outcome = zygote.run(program, self.limits)
                except ZygoteError as error:
                    failure = error
                else:
                    self._idle.put(zygote)
                    return outcome
            raise RuntimeError(
                f"the sandbox could not run a program ({self._level}): {failure}"
            ) from failure

    def _take(self) -> Zygote:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return Zygote(str(self._level))

    def _choose(self) -> None:
        """Take the first level on which a program really runs."""
        advice = "plug another sandbox in, see docs/sandbox.md"
        if sys.platform != "linux":
            raise ValueError(f"the local sandbox needs Linux, this is {sys.platform}; {advice}")
        failures = []
        for level in self._levels:
            if self.limits.processes > 1 and level != "namespaces":
                failures.append(f"{level}: processes={self.limits.processes} needs namespaces")
                continue
            try:
                zygote = Zygote(level)
                outcome = zygote.run(_TRIAL, Limits())
            except ZygoteError as error:
                failures.append(f"{level}: {error}")
                continue
            if outcome.passed:
                self._idle.put(zygote)
                self._level = level
                return
            zygote.close()
            failures.append(f"{level}: a trial program {outcome.status} ({outcome.detail})")
        raise ValueError(
            f"no isolation for generated code works here ({'; '.join(failures)}); {advice}"
        )

    def _forget_a_parents_processes(self) -> None:
        """After a fork, the zygotes are the parent's: one socket, two users."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self.close()
            self._slots = threading.BoundedSemaphore(self.workers)
