"""Limits for tests, and a search for processes that should be gone."""

import os
import time
from pathlib import Path

from entropyfloor.sandbox import Limits

SHORT = Limits(wall_seconds=2.0, cpu_seconds=1.0, memory=512 << 20, disk=8 << 20, output=1 << 16)


def processes_with(word: str) -> list[int]:
    """Ids of all processes with a word on their command line, but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
    return found


def gone(word: str, seconds: float = 5.0) -> bool:
    """Whether no process with the word is left within some seconds."""
    deadline = time.monotonic() + seconds
    while processes_with(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
