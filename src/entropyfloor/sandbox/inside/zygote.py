"""A small process that starts programs: fork is cheaper than a new interpreter, and as fresh.

It is started as ``python -I`` with an empty environment, imports what the harness needs, moves to
where programs may run (:mod:`.confine`) and then serves one program at a time:

    zygote ── guardian ── judge ── solution

The guardian makes the program's process-id namespace and folder and leads the process group. The
judge, first in that namespace, holds the tests and the write end of the verdict's pipe. The
solution is forked before the judge reads the tests; code and tests come in memory files that the
zygote passes on unread, so nothing of one program is in the memory of the next. The zygote, and
no one below it, decides when time is up; it kills the group, and waits until it has no child left.
When the socket to the user's process closes, it kills what runs and ends.
"""

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from entropyfloor.sandbox.inside import kernel
from entropyfloor.sandbox.inside.confine import (
    BOX,
    NAMESPACES,
    Confinement,
    enclose,
    lock_down,
    open_box,
)
from entropyfloor.sandbox.inside.folder import bytes_below, remove_folder
from entropyfloor.sandbox.inside.judge import give_verdict, judge
from entropyfloor.sandbox.inside.solution import run_solution

_POLL_SECONDS = 0.05  # how often a folder on disk is measured
_KEPT_OUTPUT = 1 << 13  # what an outcome shows of it
_LONGEST_VERDICT = 1 << 16
_PRELOADED = (
    *("bisect", "collections.abc", "copy", "dataclasses", "enum", "functools", "hashlib", "heapq"),
    *("itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "typing"),
)
_HEADER = struct.Struct("!I")


def start(level: str, folder: str) -> None:
    """Serve the socket that is standard input until it closes."""
    with suppress(_UserGone, BrokenPipeError, ConnectionResetError):
        _serve(level, folder)


def _serve(level: str, folder: str) -> None:
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")  # short of memory, the kernel shall take a program, not its trainer
    try:
        confinement = enclose(level, folder)
    except OSError as error:
        _send(control, {"error": str(error)})
        return
    _warm_up()
    _send(control, {"words": confinement.words()})
    while (request := _receive(control)) is not None:
        limits, files = request
        _send(control, _Run(confinement, limits, files, control, null, folder).outcome())


@dataclass
class _Run:
    """One program, from its fork to the death of the last of its processes."""

    confinement: Confinement
    limits: dict[str, Any]
    files: list[int]
    control: socket.socket
    null: int
    parent_folder: str

    def __post_init__(self) -> None:
        self.on_disk = self.confinement.level != NAMESPACES
        self.folder = tempfile.mkdtemp(dir=self.parent_folder) if self.on_disk else BOX
        if self.on_disk and self.confinement.user_id is not None:
            os.chown(self.folder, self.confinement.user_id, self.confinement.user_id)
        self.output = bytearray()

    def outcome(self) -> dict[str, Any]:
        """Run it; status, detail, output."""
        verdict_read, verdict_write = os.pipe()
        output_read, output_write = os.pipe()
        guardian = os.fork()
        if guardian == 0:
            _in_child(verdict_write, self._guard, verdict_write, output_write)
        for descriptor in (verdict_write, output_write, *self.files):
            os.close(descriptor)
        try:
            verdict = self._watch(verdict_read, output_read)
        finally:
            self._end(guardian)
            os.close(verdict_read)
            os.close(output_read)
        verdict["output"] = bytes(self.output[:_KEPT_OUTPUT]).decode(errors="replace")
        return verdict

    def _watch(self, verdict: int, output: int) -> dict[str, Any]:
        deadline = time.monotonic() + self.limits["wall_seconds"]
        poll = select.poll()
        for descriptor in (verdict, output, self.control.fileno()):
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            wait = min(left, _POLL_SECONDS) if self.on_disk else left
            ready = {descriptor for descriptor, _ in poll.poll(max(1, int(wait * 1000)))}
            if output in ready and not self._take_output(output):
                poll.unregister(output)
            if verdict in ready:
                data = os.read(verdict, _LONGEST_VERDICT)
                while output in ready and self._take_output(output, wait=False):
                    pass
                return json.loads(data) if data else dict(_EXITED)
            if len(self.output) > self.limits["output"]:
                return {"status": "output", "detail": f"more than {self.limits['output']} bytes"}
            if self.control.fileno() in ready and not self.control.recv(1, socket.MSG_PEEK):
                raise _UserGone
            if self.on_disk and bytes_below(self.folder) > self.limits["disk"]:
                return {"status": "disk", "detail": f"more than {self.limits['disk']} bytes"}
        return {"status": "timeout", "detail": f"{self.limits['wall_seconds']} s of wall time"}

    def _take_output(self, pipe: int, *, wait: bool = True) -> bool:
        """Read what is there; False when there will be no more. At most one read past the limit."""
        if len(self.output) > self.limits["output"]:
            return False
        if not wait and not select.select([pipe], [], [], 0)[0]:
            return False
        data = os.read(pipe, 1 << 16)
        self.output += data
        return bool(data)

    def _end(self, guardian: int) -> None:
        """Kill the group and wait for all of it: orphans are ours, we are their subreaper."""
        with suppress(ProcessLookupError):
            os.killpg(guardian, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        if self.on_disk:
            remove_folder(self.folder)

    # -- in the guardian and below ---------------------------------------------------------------

    def _guard(self, verdict: int, output: int) -> None:
        os.setsid()
        _die_with_parent()
        open_box(self.confinement, self.folder, self.limits["disk"])
        _die_with_parent()  # again: a change of user has cleared it
        _keep_open(verdict, output, self.null, *self.files)
        child = os.fork()
        if child == 0:
            _in_child(verdict, self._judge, verdict, output)
        _keep_open()
        os.waitpid(child, 0)

    def _judge(self, verdict: int, output: int) -> None:
        _die_with_parent()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        mine, theirs = socket.socketpair()
        code, tests = self.files
        child = os.fork()
        if child == 0:
            _in_child(None, self._solve, theirs, code)
        theirs.close()
        os.close(code)
        specification = json.loads(_read_file(tests))
        lock_down(self.confinement, self.folder, self.limits)
        outcome = judge(mine, **specification)
        if outcome["status"] == "exited":
            outcome = _how_it_ended(child, outcome)
        give_verdict(verdict, json.dumps(outcome).encode())

    def _solve(self, channel: socket.socket, code: int) -> None:
        _die_with_parent()
        source = _read_file(code)
        _keep_open(1, 2, channel.fileno())
        os.environ.clear()
        os.environ.update(HOME=self.folder, TMPDIR=self.folder, PATH="/usr/bin:/bin")
        os.environ.update(LANG="C.UTF-8", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        lock_down(self.confinement, self.folder, self.limits)
        run_solution(source.decode(), channel)


def _warm_up() -> None:
    """What every program would do again for itself: import what most use, and tidy memory once."""
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # objects that no collection visits are pages that no child copies


class _UserGone(Exception):
    """The user's process is gone: kill what runs, and end."""


_EXITED = {"status": "exited", "detail": "the tests' process was killed before its verdict"}


def _how_it_ended(child: int, outcome: dict[str, str]) -> dict[str, str]:
    for _ in range(50):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        return {"status": "exited", "detail": "the program broke its connection to the tests"}
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return {"status": "timeout", "detail": "the limit of CPU time"}
    how = f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    return {"status": "exited", "detail": f"the program's process {how} before its tests ended"}


def _in_child(verdict: int | None, run: Callable[..., None], *args: Any) -> NoReturn:
    """Run in a forked child and end it, whatever happens: it must never return to the loop.

    Where the harness itself fails, that is no verdict about the program, and is said.
    """
    try:
        run(*args)
    except BaseException as error:
        if verdict is not None:
            words = {"status": "error", "detail": f"{type(error).__name__}: {error}"}
            with suppress(OSError):
                os.write(verdict, json.dumps(words).encode())
    finally:
        os._exit(1)


def _die_with_parent() -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_open(*descriptors: int) -> None:
    """Close all but these and the first three, which are /dev/null or the program's output."""
    previous = 2
    for descriptor in [*sorted(set(descriptors) - {0, 1, 2}), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(previous + 1, descriptor)
        previous = descriptor


def _read_file(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts = os.pread(descriptor, size, 0)
    os.close(descriptor)
    return parts


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    room = socket.CMSG_SPACE(2 * array.array("i").itemsize)
    first, ancillary, _, _ = control.recvmsg(_HEADER.size, room)
    if not first:
        return None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data)
    (length,) = _HEADER.unpack(first)
    return json.loads(control.recv(length, socket.MSG_WAITALL)), list(descriptors)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    control.sendall(_HEADER.pack(len(body)) + body)
