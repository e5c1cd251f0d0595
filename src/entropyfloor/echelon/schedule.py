"""Run what is missing of an echelon, in the order that its stages depend on each other.

    base (per seed) ─► SFT (per loss and seed) ─► rung (per depth): screen, GRPO, evaluate
                       GFT ◄── groups ◄────────── a rung that teaches

A stage that fails is tried again; what depends on one that failed for good is left out, and
everything else goes on.
"""

import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from entropyfloor.echelon.executors import Runner
from entropyfloor.echelon.folder import Stage, read_json
from entropyfloor.echelon.recipe import Recipe, load_recipe
from entropyfloor.echelon.stages import Stages
from entropyfloor.io import save_json

FAILURES = "failures"
_KINDS = ("base", "sft", "rung")


@dataclass(frozen=True)
class Failure:
    """A stage that failed in every try, and why."""

    stage: str
    message: str


def run_stage(recipe: dict[str, Any], folder: str, keep: str, stage: Stage) -> float:
    """Do one stage; what a worker runs. Returns the seconds it took."""
    from datasets import disable_progress_bars

    from entropyfloor.rollouts.draw import quiet_loading

    disable_progress_bars()  # of mapping a hundred rows
    # trl 1.16 sets the old name itself; transformers 5.23 has a new one.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing`", FutureWarning)
    started = time.perf_counter()
    with quiet_loading():
        Stages(load_recipe(recipe), folder, keep=keep).run(stage)
    return time.perf_counter() - started


class Schedule:
    """Runs the missing stages on an executor.

    Args:
        stages: of the recipe, in their folder.
        runner: see ``executors``.
        retries: further tries of a stage that failed.
        on_event: called with (event, stage, seconds or message): ``started``, ``finished``,
            ``retried``, ``failed``, ``left out``.

    """

    def __init__(
        self,
        stages: Stages,
        runner: Runner,
        *,
        retries: int = 1,
        on_event: Callable[[str, Stage, Any], None] = lambda *_: None,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries must be 0 or more; got {retries}")
        self._stages, self._runner, self._retries = stages, runner, retries
        self._on_event = on_event
        self._waiting = deque(stages.missing())
        self._tries: dict[Stage, int] = {}
        self._lost: set[Stage] = set()
        self.failures: list[Failure] = []
        self.timed: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        self.total = len(self._waiting)

    def run(self) -> list[Failure]:
        """Run everything; what failed for good is returned and kept in ``failures/``."""
        running: dict[Future[Any], Stage] = {}
        while self._waiting or running:
            for stage in self._startable(running):
                self._on_event("started", stage, None)
                future = self._runner.submit(
                    run_stage,
                    self._stages.recipe.to_dict(),
                    str(self._stages.folder),
                    self._stages.keep,
                    stage,
                )
                running[future] = stage
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                self._end(running.pop(future), future)
        return self.failures

    def remaining_seconds(self) -> float | None:
        """An estimate from the stages timed so far; None before one of each waiting kind was."""
        kinds = {stage.kind for stage in self._waiting}
        if any(not self.timed[kind] for kind in kinds):
            return None
        means = {kind: sum(self.timed[kind]) / len(self.timed[kind]) for kind in kinds}
        return sum(means[stage.kind] for stage in self._waiting) / self._runner.slots

    def _startable(self, running: dict["Future[Any]", Stage]) -> Iterator[Stage]:
        """Stages that depend on nothing unfinished, as many as there are free slots."""
        blocked = {*running.values(), *self._waiting}
        free = self._runner.slots - len(running)
        for stage in list(self._waiting):
            if free <= 0:
                return
            if not self._stages.needs(stage) & blocked:
                self._waiting.remove(stage)
                free -= 1
                yield stage

    def _end(self, stage: Stage, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            seconds = future.result()
            self.timed[stage.kind].append(seconds)
            (self._stages.folder / FAILURES / f"{stage.name}.json").unlink(missing_ok=True)
            self._on_event("finished", stage, seconds)
            return
        self._tries[stage] = self._tries.get(stage, 0) + 1
        message = f"{type(error).__name__}: {error}"
        # What was said to be impossible stays so.
        if self._tries[stage] <= self._retries and not isinstance(error, ValueError):
            self._waiting.appendleft(stage)
            self._on_event("retried", stage, message)
            return
        trace = "".join(traceback.format_exception(error))
        save_json(
            self._stages.folder / FAILURES / f"{stage.name}.json",
            {"stage": stage.name, "message": message, "traceback": trace},
        )
        self.failures.append(Failure(stage.name, message))
        self._on_event("failed", stage, message)
        self._lost.add(stage)
        # In the order of `missing`, but for a teacher's rung, which comes after its pupils' SFT.
        while lost := [s for s in self._waiting if self._stages.needs(s) & self._lost]:
            for other in lost:
                self._waiting.remove(other)
                self._lost.add(other)
                self._on_event("left out", other, f"{stage.name} failed")


def read_failures(folder: Path) -> list[Failure]:
    """What failed in the last run and has not been done since."""
    records = [read_json(file) for file in sorted((folder / FAILURES).glob("*.json"))]
    return [Failure(record["stage"], record["message"]) for record in records]


def only_one_run(folder: Path) -> FileLock:
    """Lock the folder for one schedule.

    Raises:
        ValueError: another run works there.

    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".running")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another echelon is running in {folder}: wait for it, or give another --output-dir"
        ) from None
    return lock


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a folder was last run with.

    Raises:
        FileNotFoundError: none was.
        ValueError: its recipe.json is not one.

    """
    file = folder / "recipe.json"
    try:
        recipe = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if recipe is None:
        raise FileNotFoundError(f"{folder} holds no echelon: there is no recipe.json")
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} is not a mapping of settings; got {recipe!r:.80}")
    return load_recipe(recipe)
