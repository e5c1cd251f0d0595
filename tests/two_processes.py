"""A test program as two processes of one gloo group, on the CPU and without a launcher."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def two_processes(
    program: str, folder: Path, *arguments: str, python: str = sys.executable, seconds: int = 180
) -> Iterator[None]:
    """Run ``program`` twice with ``folder`` and ``arguments``.

    What is inside the ``with`` runs meanwhile; leaving it waits, and fails with what the processes
    wrote to standard error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [python, program, str(folder), *arguments],
            env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"errors-{rank}").open("w"),
        )
        for rank in "01"
    ]
    try:
        yield
        codes = [process.wait(timeout=seconds) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    errors = "".join((folder / f"errors-{rank}").read_text()[-3000:] for rank in "01")
    assert codes == [0, 0], errors


def records_of(
    program: Path, run_all: Callable[[Path], None], names: Iterable[str], new_folder: Callable
) -> dict[tuple[int, int], dict[str, Any]]:
    """``{(processes, rank): {name: record}}`` of a program run alone and as two processes.

    ``run_all`` writes ``<name>-<rank>.json``; ``new_folder`` is ``tmp_path_factory.mktemp``.
    """
    one, two = new_folder("one"), new_folder("two")
    with two_processes(str(program), two):
        run_all(one)
    places = {(1, 0): one, (2, 0): two, (2, 1): two}
    return {
        (processes, rank): {
            name: json.loads((folder / f"{name}-{rank}.json").read_text()) for name in names
        }
        for (processes, rank), folder in places.items()
    }


def files_of(folder: Path) -> list[str]:
    """Every file below an output directory. Give each process one of its own to see who writes."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def end_of_process() -> None:
    """Last line of such a program."""
    torch.distributed.barrier()
    # Not sys.exit: gloo's threads have been seen to keep a finished process alive.
    os._exit(0)
