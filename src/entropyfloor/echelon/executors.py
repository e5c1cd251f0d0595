"""Where the stages of an echelon run: here, in worker processes of this machine, or on Ray.

All three hand back ``concurrent.futures.Future`` objects and run the same function with the same
number of threads, so that the numbers do not depend on the choice.

A file of its own, without torch: a worker imports it before it is told how many threads it has.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

_GRACE_SECONDS = 5.0
EXECUTORS = ("serial", "processes", "ray")


class Runner(Protocol):
    """What the schedule needs of an executor: so many stages at once, a future for each."""

    slots: int

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]": ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def open_executor(name: str, *, workers: int, threads: int, gpus: int) -> Runner:
    """Make an executor.

    Args:
        name: ``serial``, ``processes`` or ``ray``.
        workers: stages at once.
        threads: of each, on a CPU.
        gpus: of this machine; worker i sees GPU i modulo this. On Ray a stage asks for one GPU if
            this is above 0.

    Raises:
        ValueError: an unknown name, fewer than one worker, or Ray where it is not installed.

    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if name == "serial":
        if workers > 1:
            raise ValueError(
                f"the executor `serial` has one worker; for {workers} choose processes or ray"
            )
        return SerialRunner(threads)
    if name == "processes":
        return ProcessRunner(workers, threads, gpus)
    if name == "ray":
        return RayRunner(workers, threads, gpus)
    raise ValueError(f"executor is {name!r}; choose one of {', '.join(EXECUTORS)}")


class SerialRunner:
    """In this process, one after another."""

    slots = 1

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Run it now."""
        import torch

        future: Future[Any] = Future()
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        finally:
            torch.set_num_threads(before)
        return future

    def close(self) -> None:
        """Nothing is left to end."""


class ProcessRunner:
    """In worker processes, each with its GPU; a worker that dies is replaced.

    The stages that ran when it died end with an error: which of them killed it is not known.
    """

    def __init__(self, workers: int, threads: int, gpus: int) -> None:
        self.slots = workers
        self._threads, self._gpus = threads, gpus
        self._pool = self._new_pool()

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Queue one call."""
        try:
            return self._pool.submit(function, *args)
        except BrokenProcessPool:
            self._pool = self._new_pool()
            return self._pool.submit(function, *args)

    def close(self) -> None:
        """End the workers: idle ones by themselves, one at work after a moment's grace."""
        # Private until Python 3.14, which has terminate_workers().
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(timeout=_GRACE_SECONDS)
            process.terminate()
            process.join()

    def _new_pool(self) -> Executor:
        context = get_context("spawn")  # torch's threads do not survive a fork
        worker_numbers = context.Queue()
        for index in range(self.slots):
            worker_numbers.put(index)
        return ProcessPoolExecutor(
            self.slots,
            mp_context=context,
            initializer=_begin_worker,
            initargs=(worker_numbers, self._threads, self._gpus, os.getpid()),
        )


def _begin_worker(worker_numbers: Any, threads: int, gpus: int, parent: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(worker_numbers.get() % gpus)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _set_threads(threads)


def _end_with(parent: int) -> None:
    """A killed parent leaves no worker behind that would write beside its successor."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


class RayRunner:
    """On a Ray cluster, or a local one where none is running.

    The output folder must be one that every node sees. ``RAY_ADDRESS`` names the cluster.
    """

    def __init__(self, workers: int, threads: int, gpus: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "the executor `ray` needs the package: pip install 'entropyfloor[ray]'"
            ) from error
        self._ray, self._threads = ray, threads
        self.slots = workers
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(
                num_cpus=None if os.environ.get("RAY_ADDRESS") else workers * threads,
                log_to_driver=False,
                include_dashboard=False,
            )
        self._remote = ray.remote(_on_ray).options(
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
            max_retries=0,  # the schedule counts tries
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Queue one call on the cluster."""
        future: Future[Any] = self._remote.remote(self._threads, function, args).future()
        return future

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._started_ray:
            self._ray.shutdown()


def _on_ray(threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _set_threads(threads)
    return function(*args)
