"""Runs that are killed while they draw rollouts into a folder."""

import os
import signal
import time

from entropyfloor.rollouts.rollout_store import RolloutStore


def _lines(folder):
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("rollouts-*.jsonl"))


def kill_while_drawing(run, folder, *, after=0.0):
    """Run in a fork, slowly, and kill it ``after`` seconds from when it has drawn something new."""
    before, until = _lines(folder), time.monotonic() + 60
    pid = os.fork()
    if pid == 0:
        append = RolloutStore.append

        def slowly(*arguments):
            append(*arguments)
            time.sleep(0.1)

        try:
            RolloutStore.append = slowly
            run()
        finally:
            os._exit(1)
    while _lines(folder) == before and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "it must not have ended before"
    assert _lines(folder) > before, "each run must have drawn before it was killed"
