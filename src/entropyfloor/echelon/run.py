"""``run_echelon``: run a recipe, or what is missing of it, and compare what is there.

recipe.json                             the recipe, resolved, of the last run
base/ sft/ screening/ grpo/ evaluation/ see ``cells``
failures/                               stages that failed, with their traceback
cells.json echelon.json .md .html .png  the result, written again whenever a cell is done
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.echelon.cells import Cells
from entropyfloor.echelon.compare import EchelonComparison, compare
from entropyfloor.echelon.executors import open_executor
from entropyfloor.echelon.recipe import Recipe, load_recipe
from entropyfloor.echelon.schedule import (
    Failure,
    Schedule,
    Stage,
    only_one_run,
    read_failures,
    recipe_of,
)
from entropyfloor.io import save_json

_REFRESH_SECONDS = 60.0


@dataclass(frozen=True)
class EchelonResult:
    """What a run left.

    Attributes:
        comparison: of the finished cells; None if there is none.
        failures: stages that failed in every try.
        folder: where everything is.

    """

    comparison: EchelonComparison | None
    failures: tuple[Failure, ...]
    folder: Path


def run_echelon(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output_dir: str | Path,
    *,
    executor: str | None = None,
    workers: int = 1,
    keep: str = "rungs",
    retries: int = 1,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> EchelonResult:
    """Run what is missing of an echelon.

    Args:
        recipe: checked, or what ``load_recipe`` takes.
        output_dir: made if missing. Finished cells in it are not run again, whichever recipe they
            were run for.
        executor: ``serial``, ``processes`` or ``ray``; by the number of workers when left out.
        workers: stages at once.
        keep: weights that stay: ``rungs`` (SFT's), ``all`` (GRPO's too) or ``nothing``.
        retries: further tries of a stage that failed.
        say: gets a line per finished stage.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: a recipe or setting that cannot work, or a folder where another run works.
        FileNotFoundError: no such recipe, or a file that it names.

    """
    checked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(output_dir)
    cells = Cells(checked, folder, keep=keep)
    for seed in checked.seeds:
        cells.sources(seed)  # raises for data or prompts that cannot work
    name = executor or ("serial" if workers == 1 else "processes")
    runner = open_executor(name, workers=workers, threads=checked.threads, gpus=_gpus())
    try:
        with only_one_run(folder):
            save_json(folder / "recipe.json", checked.to_dict())
            with _Told(cells, say, progress) as told:
                refresh = _Refresh(cells)

                def on_event(event: str, stage: Stage, detail: Any) -> None:
                    told.event(event, stage, detail)
                    if event == "finished" and stage.kind == "rung":
                        refresh()

                schedule = Schedule(cells, runner, retries=retries, on_event=on_event)
                told.begin(schedule)
                failures = schedule.run()
            for loss, seed, depth in _all(checked):
                if cells.cell(loss, seed, depth) is not None:
                    cells.tidy(loss, seed, depth)
            comparison = write_results(cells)
    finally:
        runner.close()
    return EchelonResult(comparison, tuple(failures), folder)


def write_results(cells: Cells) -> EchelonComparison | None:
    """Write cells.json and, if a cell is finished, echelon.json, .md, .html and .png."""
    from entropyfloor.echelon.page import write_report

    found = finished_cells(cells)
    recipe, folder = cells.recipe, cells.folder
    base = {seed: m for seed in recipe.seeds if (m := cells.base(seed)) is not None}
    save_json(
        folder / "cells.json",
        {"recipe": recipe.to_dict(), "base": {str(s): m for s, m in base.items()}, "cells": found},
    )
    if not found:
        return None
    comparison = compare(found, base, comparison_settings(recipe))
    write_report(comparison, folder)
    return comparison


def finished_cells(cells: Cells) -> list[dict[str, Any]]:
    """In the recipe's order."""
    return [c for where in _all(cells.recipe) if (c := cells.cell(*where)) is not None]


def comparison_settings(recipe: Recipe) -> dict[str, Any]:
    """What ``compare`` needs to know of a recipe."""
    steps: list[int] = []
    if recipe.grpo is not None:
        training = recipe.grpo_training()
        steps = list(range(training.save_every, training.steps + 1, training.save_every))
        if not steps or steps[-1] != training.steps:
            steps.append(training.steps)  # the trainer saves the end as well
    return {
        "name": recipe.name,
        "outcome_k": recipe.k,
        "group_size": recipe.screening_options(after_rl=False)["group_size"],
        "tau_h": recipe.tau_h,
        "losses": list(recipe.losses),
        "depths": list(recipe.depths),
        "seeds": list(recipe.seeds),
        "grpo_steps": steps,
    }


def echelon_status(output_dir: str | Path) -> dict[str, Any]:
    """How far an echelon is, as plain data for JSON.

    Returns:
        ``name``; ``cells`` (loss, seed, depth, state: done, trained (SFT is done), failed or
        missing); ``done``, ``total``; ``seconds`` of the finished cells' screening and GRPO, and
        ``remaining_seconds`` that the others would take one after another at that pace (None before
        the first); ``failures``; ``running``.

    Raises:
        FileNotFoundError: the folder holds no echelon.

    """
    folder = Path(output_dir)
    recipe = recipe_of(folder)
    cells = Cells(recipe, folder)
    failures = read_failures(folder)
    failed = {failure.stage for failure in failures}
    rows, times = [], []
    for loss, seed, depth in _all(recipe):
        cell = cells.cell(loss, seed, depth)
        if cell is not None:
            state = "done"
            times.append(sum(cell["seconds"].values()))
        elif failed & {
            Stage("rung", seed, loss, depth).name,
            Stage("sft", seed, loss).name,
            Stage("base", seed).name,
        }:
            state = "failed"
        elif cells.rung_weights(loss, seed, depth).is_dir():
            state = "trained"
        else:
            state = "missing"
        rows.append({"loss": loss, "seed": seed, "depth": depth, "state": state})
    left = len(rows) - len(times)
    return {
        "name": recipe.name,
        "cells": rows,
        "done": len(times),
        "total": len(rows),
        "seconds": sum(times),
        "remaining_seconds": sum(times) / len(times) * left if times else None,
        "failures": [{"stage": f.stage, "message": f.message} for f in failures],
        "running": _is_running(folder),
    }


def _is_running(folder: Path) -> bool:
    try:
        only_one_run(folder).release()
    except ValueError:
        return True
    return False


def _all(recipe: Recipe) -> list[tuple[str, int, float]]:
    return [
        (loss, s, depth) for loss in recipe.losses for s in recipe.seeds for depth in recipe.depths
    ]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


class _Refresh:
    """Writes the results while the run lasts, but never longer than a small part of its time."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._next = time.perf_counter() + _REFRESH_SECONDS

    def __call__(self) -> None:
        if time.perf_counter() < self._next:
            return
        started = time.perf_counter()
        write_results(self._cells)
        ended = time.perf_counter()
        self._next = ended + max(_REFRESH_SECONDS, 50 * (ended - started))


class _Told:
    """A line per finished stage, and a bar with what is left."""

    def __init__(self, cells: Cells, say: Callable[[str], None], progress: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._cells, self._say = cells, say
        self._started = time.perf_counter()
        self._schedule: Schedule | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            disable=not progress,
        )
        self._row = self._bar.add_task("stages", total=None, left="")

    def __enter__(self) -> "_Told":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, schedule: Schedule) -> None:
        """Say how much there is to do."""
        self._schedule = schedule
        self._bar.update(self._row, total=schedule.total)
        recipe = self._cells.recipe
        cells = len(_all(recipe))
        self._say(
            f"{recipe.name}: {len(recipe.losses)} losses × {len(recipe.depths)} depths × "
            f"{len(recipe.seeds)} seeds = {cells} cells; {schedule.total} stages are missing"
        )

    def event(self, event: str, stage: Stage, detail: Any) -> None:
        """One stage began, ended or failed."""
        assert self._schedule is not None
        if event in {"finished", "failed", "left out"}:
            self._bar.advance(self._row)
        remaining = self._schedule.remaining_seconds()
        left = "" if remaining is None else f"about {_duration(remaining)} left"
        self._bar.update(self._row, left=left)
        if event == "started":
            return
        elapsed = time.perf_counter() - self._started
        words = f"{detail:.0f} s" if event == "finished" else str(detail)
        if event == "finished" and stage.kind == "rung":
            cell = self._cells.cell(stage.loss, stage.seed, stage.depth)
            assert cell is not None
            words = f"{_in_words(cell, self._cells.recipe.k)} ({words})"
        where = f"{left}" if left else ""
        self._say(f"[{elapsed:6.0f} s] {event} {stage.name}: {words}{where and '; ' + where}")


def _in_words(cell: Mapping[str, Any], k: int) -> str:
    before = cell["before"]
    words = f"entropy {before['entropy_nats']:.3f} nats, pass@1 {before['pass_at_1']:.3f}"
    if cell["after"]:
        peak = max(measures["pass_at_k"][str(k)] for measures in cell["after"].values())
        words += f", after GRPO pass@{k} {peak:.3f}"
    return words


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
