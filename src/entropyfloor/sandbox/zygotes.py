"""The user's side of one zygote: start it, hand it programs, end it."""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from entropyfloor.sandbox.program import Limits, Outcome, Program

_HEADER = struct.Struct("!I")
_START_SECONDS = 60.0
_GRACE_SECONDS = 30.0  # beyond a program's wall time, for its fork and the death of its processes
_SOURCES = str(Path(__file__).parents[2])
# -I: no environment variables, no user site, no current directory; -B: a program that imports
# installed code leaves no .pyc beside it. The path of our own package is
# there for the imports of the harness alone.
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from entropyfloor.sandbox.inside.zygote import start; "
    "del sys.path[0]; start(*sys.argv[2:])"
)


class ZygoteError(RuntimeError):
    """The harness failed, not the program."""


class Zygote:
    """A running zygote; one program at a time. One that fails is ended."""

    _last_words = ""

    def __init__(self, level: str) -> None:
        """Start it.

        Raises:
            ZygoteError: this machine does not allow the level of isolation.

        """
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        self._answers = self._control.makefile("rb")
        command = [sys.executable, "-I", "-B", "-X", "utf8", "-c", _START]
        with theirs:
            self._process = subprocess.Popen(
                [*command, _SOURCES, level, tempfile.gettempdir()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
            )
        try:
            hello = self._receive()
        except (OSError, ZygoteError) as error:
            self.close()
            raise ZygoteError(f"its process did not start: {self._last_words or error}") from error
        if "error" in hello:
            self.close()
            raise ZygoteError(hello["error"])
        self.words: list[str] = hello["words"]

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run one program.

        Raises:
            ZygoteError: the harness failed.

        """
        started = time.perf_counter()
        trusted = {name: getattr(program, name) for name in ("tests", "prelude", "entry_point")}
        body = json.dumps(asdict(limits)).encode()
        try:
            with (
                _memory_file(program.code.encode("utf-8", "replace")) as code,
                _memory_file(json.dumps(trusted).encode()) as tests,
            ):
                self._control.settimeout(limits.wall_seconds + _GRACE_SECONDS)
                files = [code.fileno(), tests.fileno()]
                socket.send_fds(self._control, [_HEADER.pack(len(body))], files)
                self._control.sendall(body)
                answer = self._receive()
            if answer["status"] == "error":
                raise ZygoteError(answer["detail"])
        except BaseException as error:
            self.close()  # its answer would go to the next program
            if isinstance(error, OSError):
                raise ZygoteError(f"its process does not answer: {error}") from error
            raise
        return Outcome(**answer, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """End it, and with it whatever it runs."""
        self._answers.close()
        self._control.close()
        if self.owner != os.getpid():
            return  # a fork of the owner: not our child
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None and not self._process.stderr.closed:
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self._last_words = lines[-1] if lines else ""
            self._process.stderr.close()

    def _receive(self) -> dict[str, Any]:
        header = self._answers.read(_HEADER.size)
        length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 1
        body = self._answers.read(length)
        if len(body) < length:
            raise ZygoteError("its process ended")
        return json.loads(body)


def _memory_file(content: bytes) -> BinaryIO:
    file = open(os.memfd_create("entropyfloor-sandbox"), "wb")  # noqa: SIM115 - the caller's
    file.write(content)
    file.flush()
    return file
