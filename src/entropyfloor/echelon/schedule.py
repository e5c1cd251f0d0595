"""Run what is missing of an echelon, in the order that its stages depend on each other.

    base (per seed) ─► SFT (per loss and seed) ─► rung (per depth): screen, GRPO, evaluate

A stage that fails is tried again; what depends on one that failed for good is left out, and
everything else goes on.
"""

import json
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

from entropyfloor.echelon.cells import Cells
from entropyfloor.echelon.executors import Runner
from entropyfloor.echelon.recipe import Recipe, load_recipe
from entropyfloor.io import save_json

FAILURES = "failures"
_KINDS = ("base", "sft", "rung")


@dataclass(frozen=True)
class Stage:
    """One unit of work.

    Attributes:
        kind: base, sft or rung.
        seed: of the cell.
        loss: empty for the base.
        depth: 0 but for a rung.

    """

    kind: str
    seed: int
    loss: str = ""
    depth: float = 0

    @property
    def name(self) -> str:
        """For people and file names."""
        if self.kind == "base":
            return f"base-seed-{self.seed}"
        deep = f"-depth-{self.depth:g}" if self.kind == "rung" else ""
        return f"{self.kind}-{self.loss}-seed-{self.seed}{deep}"


@dataclass(frozen=True)
class Failure:
    """A stage that failed in every try, and why."""

    stage: str
    message: str


def run_stage(recipe: dict[str, Any], folder: str, keep: str, stage: Stage) -> float:
    """Do one stage; what a worker runs. Returns the seconds it took.

    Two that meet at the same stage take turns, and the second finds it done.
    """
    from datasets import disable_progress_bars

    from entropyfloor.rollouts.progress import quiet_loading

    disable_progress_bars()  # of mapping a hundred rows
    # trl 1.16 sets the old name itself; transformers 5.23 has a new one.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing`", FutureWarning)
    started = time.perf_counter()
    cells = Cells(load_recipe(recipe), folder, keep=keep)
    locks = Path(folder) / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / stage.name), quiet_loading():
        if stage.kind == "base":
            cells.run_base(stage.seed)
        elif stage.kind == "sft":
            cells.run_sft(stage.loss, stage.seed)
        else:
            cells.run_rung(stage.loss, stage.seed, stage.depth)
    return time.perf_counter() - started


def missing_stages(cells: Cells) -> list[Stage]:
    """What has to run, in an order that works."""
    recipe = cells.recipe
    found = [Stage("base", seed) for seed in recipe.seeds if cells.base(seed) is None]
    for seed in recipe.seeds:
        for loss in recipe.losses:
            if cells.weights_needed(loss, seed):
                found.append(Stage("sft", seed, loss))
    for seed in recipe.seeds:
        for loss in recipe.losses:
            # Deepest first: should the run be stopped early, the ends of the ladder are there.
            for depth in reversed(cells.unfinished_depths(loss, seed)):
                found.append(Stage("rung", seed, loss, depth))
    return found


class Schedule:
    """Runs the missing stages on an executor.

    Args:
        cells: of the recipe.
        runner: see ``executors``.
        retries: further tries of a stage that failed.
        on_event: called with (event, stage, seconds or message): ``started``, ``finished``,
            ``retried``, ``failed``, ``left out``.

    """

    def __init__(
        self,
        cells: Cells,
        runner: Runner,
        *,
        retries: int = 1,
        on_event: Callable[[str, Stage, Any], None] = lambda *_: None,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries must be 0 or more; got {retries}")
        self._cells, self._runner, self._retries = cells, runner, retries
        self._on_event = on_event
        self._waiting = deque(missing_stages(cells))
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
                    self._cells.recipe.to_dict(),
                    str(self._cells.folder),
                    self._cells.keep,
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
            if not _needs(stage) & blocked:
                self._waiting.remove(stage)
                free -= 1
                yield stage

    def _end(self, stage: Stage, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            seconds = future.result()
            self.timed[stage.kind].append(seconds)
            (self._cells.folder / FAILURES / f"{stage.name}.json").unlink(missing_ok=True)
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
            self._cells.folder / FAILURES / f"{stage.name}.json",
            {"stage": stage.name, "message": message, "traceback": trace},
        )
        self.failures.append(Failure(stage.name, message))
        self._on_event("failed", stage, message)
        for other in [s for s in self._waiting if stage in _needs(s) or _needs(s) & self._lost]:
            self._waiting.remove(other)
            self._lost.add(other)
            self._on_event("left out", other, f"{stage.name} failed")
        self._lost.add(stage)


def _needs(stage: Stage) -> set[Stage]:
    """What must have finished before; of them, those that are not missing do not matter."""
    base = Stage("base", stage.seed)
    if stage.kind == "base":
        return set()
    if stage.kind == "sft":
        return {base}
    return {base, Stage("sft", stage.seed, stage.loss)}


def read_failures(folder: Path) -> list[Failure]:
    """What failed in the last run and has not been done since."""
    found = []
    for file in sorted((folder / FAILURES).glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        found.append(Failure(record["stage"], record["message"]))
    return found


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

    """
    file = folder / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no echelon: there is no recipe.json")
    return load_recipe(json.loads(file.read_text(encoding="utf-8")))
