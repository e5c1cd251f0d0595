"""``run_echelon``: run a recipe, or what is missing of it, and compare what is there.

recipe.json                             the recipe, resolved, of the last run
data/seed-S/                            train, held_out and rl as JSON Lines, for other commands
base/ sft/ screening/ grpo/ evaluation/ see ``folder``
failures/                               stages that failed, with their traceback
screening.md                            base and every rung as screened before RL, with intervals
cells.json echelon.json .md .html .png  the result, written again whenever a cell is done
"""

import gzip
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entropyfloor.echelon.compare import EchelonComparison, compare
from entropyfloor.echelon.executors import open_executor
from entropyfloor.echelon.folder import BASE, FINISHED, EchelonFolder, Stage, read_json
from entropyfloor.echelon.recipe import Recipe, load_recipe
from entropyfloor.echelon.rungs import Plan
from entropyfloor.echelon.schedule import Failure, Schedule, only_one_run, read_failures, recipe_of
from entropyfloor.echelon.sources import check_sources
from entropyfloor.echelon.stages import Stages
from entropyfloor.io import save_json, write_atomic
from entropyfloor.screening.conclude import recommend
from entropyfloor.screening.report import ScreeningReport

_REFRESH_SECONDS = 60.0


@dataclass(frozen=True)
class EchelonResult:
    """What a run left.

    Attributes:
        comparison: of the finished cells; None if there is none.
        screenings: seed -> base and rungs as screened before RL.
        failures: stages that failed in every try.
        folder: where everything is.

    """

    comparison: EchelonComparison | None
    screenings: Mapping[int, ScreeningReport]
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
    import torch

    checked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(output_dir)
    stages = Stages(checked, folder, keep=keep)
    for seed in checked.seeds:
        check_sources(stages.sources(seed))
    name = executor or ("serial" if workers == 1 else "processes")
    gpus = torch.cuda.device_count()
    runner = open_executor(name, workers=workers, threads=checked.threads, gpus=gpus)
    try:
        with only_one_run(folder):
            save_json(folder / "recipe.json", checked.to_dict())
            for seed in checked.seeds:
                stages.sources(seed).write(folder / "data" / f"seed-{seed}")
            with _Progress(stages, say, progress) as shown:
                schedule = Schedule(stages, runner, retries=retries, on_event=shown.event)
                shown.begin(schedule)
                failures = schedule.run()
            for rung in filter(stages.is_finished, stages.rungs):
                stages.tidy(rung)
            comparison = write_results(stages)
    finally:
        runner.close()
    return EchelonResult(comparison, screenings(stages), tuple(failures), folder)


def write_results(stages: EchelonFolder) -> EchelonComparison | None:
    """Write cells.json and, if a cell is finished, the reports."""
    from entropyfloor.echelon.page import write_report
    from entropyfloor.screening.table import screening_markdown

    cells = finished_cells(stages)
    recipe, folder = stages.recipe, stages.folder
    base = {seed: m for seed in recipe.seeds if (m := stages.base(seed)) is not None}
    content = {
        "recipe": recipe.to_dict(),
        "base": {str(seed): measures for seed, measures in base.items()},
        "base_keys": {str(seed): stages.base_screening(seed).key for seed in base},
        "cells": cells,
    }
    save_json(folder / "cells.json", content)
    if not cells:
        return None
    comparison = compare(cells, base, plan_of(recipe))
    write_report(comparison, folder)
    tables = (f"# Seed {s}\n\n{screening_markdown(r)}\n" for s, r in screenings(stages).items())
    write_atomic(folder / "screening.md", "\n".join(tables))
    return comparison


def report_of(file: str | Path, output_dir: str | Path) -> EchelonComparison:
    """Write the report of a ``cells.json`` (or ``.json.gz``) anew: echelon.json .md .html .png.

    Raises:
        ValueError: the file is not one, or has no cell.
        FileNotFoundError: no such file.

    """
    from entropyfloor.echelon.page import write_report

    content = _read_cells(file)
    if not content["cells"]:
        raise ValueError(f"{file} has no finished cell to report on")
    base = {int(seed): measures for seed, measures in content["base"].items()}
    comparison = compare(content["cells"], base, plan_of(load_recipe(content["recipe"])))
    write_report(comparison, Path(output_dir))
    return comparison


def _read_cells(file: str | Path) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    raw = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error):  # no JSON, or cut short
        content = None
    if not (isinstance(content, dict) and {"recipe", "base", "cells"} <= content.keys()):
        raise ValueError(f"{file} is not the cells.json of an echelon: it has no recipe and cells")
    for cell in content["cells"]:
        if not (isinstance(cell, dict) and {"loss", "seed", "depth", "before"} <= cell.keys()):
            raise ValueError(f"{file}: a cell has loss, seed, depth and before; got {cell!r:.80}")
    return content


def take_in(output_dir: str | Path, files: Sequence[str | Path]) -> None:
    """Tell a folder what other runs have finished, before `run_echelon` works in it.

    Args:
        output_dir: of the run; made if missing.
        files: ``cells.json`` (or ``.json.gz``) of other runs. Cells in them that the same settings,
            data and version of ours determine are not run again.

    Raises:
        ValueError: a file is not one.
        FileNotFoundError: no such file.

    """
    folder = Path(output_dir)
    finished = read_json(folder / FINISHED) or {}
    for file in files:
        content = _read_cells(file)
        finished |= {cell["key"]: cell for cell in content["cells"] if "key" in cell}
        keys = content.get("base_keys", {})
        finished |= {key: {"measures": content["base"][seed]} for seed, key in keys.items()}
    if files:
        save_json(folder / FINISHED, finished)


def finished_cells(stages: EchelonFolder) -> list[dict[str, Any]]:
    """In the recipe's order."""
    return [cell for rung in stages.rungs if (cell := stages.cell(rung)) is not None]


def screenings(stages: EchelonFolder) -> dict[int, ScreeningReport]:
    """Seed -> what `screen` says of its base and of all rungs that were screened before RL."""
    reports = {}
    for seed in stages.recipe.seeds:
        files = {BASE: stages.base_screening(seed).path}
        for rung in [rung for rung in stages.rungs if rung.seed == seed]:
            files[f"{rung.loss}-depth-{rung.depth:g}"] = stages.screening(rung).path
        read = {
            name: ScreeningReport.from_dict(content["report"])
            for name, file in files.items()
            if (content := read_json(file)) is not None and "report" in content
        }
        checkpoints = tuple(replace(r.checkpoints[0], name=name) for name, r in read.items())
        if checkpoints:
            settings = next(iter(read.values())).settings
            reports[seed] = ScreeningReport(checkpoints, settings, recommend(checkpoints))
    return reports


def plan_of(recipe: Recipe) -> Plan:
    """What the recipe's cells are compared under."""
    steps: list[int] = []
    if recipe.grpo is not None:
        training, _ = recipe.grpo_options()
        steps = list(range(training.save_every, training.steps + 1, training.save_every))
        if not steps or steps[-1] != training.steps:
            steps.append(training.steps)  # the trainer saves the end as well
    return Plan(
        name=recipe.name,
        outcome_k=recipe.k,
        group_size=recipe.screening_options(after_rl=False)["group_size"],
        tau_h=recipe.tau_h,
        losses=tuple(recipe.losses),
        depths=recipe.depths,
        seeds=tuple(sorted(recipe.seeds)),
        grpo_steps=tuple(steps),
    )


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
    stages = EchelonFolder(recipe_of(folder), folder)
    failures = read_failures(folder)
    failed = {failure.stage for failure in failures}
    rows, times = [], []
    for rung in stages.rungs:
        cell = stages.cell(rung)
        stage = Stage("rung", rung.seed, rung.loss, rung.depth)
        if cell is not None:
            state = "done"
            times.append(sum(cell["seconds"].values()))
        elif failed & {stage.name, *(needed.name for needed in stages.needs(stage))}:
            state = "failed"
        else:
            state = "trained" if stages.rung_weights(rung).is_dir() else "missing"
        rows.append({**rung._asdict(), "state": state})
    left = len(rows) - len(times)
    return {
        "name": stages.recipe.name,
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


class _Progress:
    """A line per finished stage, a bar with what is left, and the results now and then."""

    def __init__(self, stages: Stages, say: Callable[[str], None], bar: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._stages, self._say = stages, say
        self._started = time.perf_counter()
        self._refresh_at = self._started + _REFRESH_SECONDS
        self._schedule: Schedule | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            disable=not bar,
        )
        self._row = self._bar.add_task("stages", total=None, left="")

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, schedule: Schedule) -> None:
        """Say how much there is to do."""
        self._schedule = schedule
        self._bar.update(self._row, total=schedule.total)
        recipe, cells = self._stages.recipe, len(self._stages.rungs)
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
        words = f"{detail:.0f} s" if event == "finished" else str(detail)
        if event == "finished" and stage.kind == "rung":
            cell = self._stages.cell(stage.rung)
            assert cell is not None
            words = f"{_in_words(cell, self._stages.recipe.k)} ({words})"
        elapsed = time.perf_counter() - self._started
        self._say(
            f"[{elapsed:6.0f} s] {event} {stage.name}: {'; '.join(filter(None, (words, left)))}"
        )
        if event == "finished" and stage.kind == "rung":
            self._refresh()

    def _refresh(self) -> None:
        """Write the results, but never longer than a small part of the run's time."""
        started = time.perf_counter()
        if started >= self._refresh_at:
            write_results(self._stages)
            ended = time.perf_counter()
            self._refresh_at = ended + max(_REFRESH_SECONDS, 50 * (ended - started))


def _in_words(cell: Mapping[str, Any], k: int) -> str:
    before = cell["before"]
    words = f"entropy {before['entropy_nats']:.3f} nats, pass@1 {before['pass_at_1']:.3f}"
    if cell["after"]:
        peak = max(metrics["pass_at_k"][str(k)] for metrics in cell["after"].values())
        words += f", after GRPO pass@{k} {peak:.3f}"
    return words


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
