"""The stages of an echelon. Each does what is missing of it, in the `EchelonFolder`.

Beside every result lies a record: what made it, on what, and when.
"""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from entropyfloor.echelon.folder import (
    BASE,
    GROUPS_FILE,
    Artifact,
    EchelonFolder,
    RungKey,
    Stage,
    steps_of,
)
from entropyfloor.echelon.recipe import Recipe
from entropyfloor.echelon.rungs import metrics
from entropyfloor.echelon.sources import Sources
from entropyfloor.echelon.training_runs import monitor_decision, train_grpo, train_loss
from entropyfloor.gft.response_groups import build_response_groups
from entropyfloor.io import save_json
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.screening.options import screening_arguments
from entropyfloor.screening.screen import screen

KEEP = ("rungs", "all", "nothing")
_PACKAGES = ("entropyfloor", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


class Stages(EchelonFolder):
    """Does the stages of a recipe in a folder.

    Args:
        recipe: checked.
        folder: made if missing; may hold results of other recipes.
        keep: ``rungs``: the weights of SFT checkpoints; ``all``: those after GRPO too; ``nothing``:
            measures only.
        progress: show the bars of single stages on standard error.

    Raises:
        ValueError: an unknown ``keep``.

    """

    def __init__(
        self, recipe: Recipe, folder: str | Path, *, keep: str = "rungs", progress: bool = False
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep is {keep!r}; choose one of {', '.join(KEEP)}")
        super().__init__(recipe, folder)
        self.keep, self.progress = keep, progress

    def run(self, stage: Stage) -> None:
        """Do one stage; two processes that meet at the same one take turns."""
        with self._lock(stage.name):
            if stage.kind == "base":
                self.run_base(stage.seed)
            elif stage.kind == "sft":
                self.run_sft(stage.loss, stage.seed)
            else:
                self.run_rung(stage.rung)

    def run_base(self, seed: int) -> None:
        """Build the model if it is built here, and screen it."""
        self._screen(self._model(seed), self.base_screening(seed), BASE, after_rl=False)

    def run_sft(self, loss: str, seed: int) -> None:
        """One SFT run, if a cell needs its weights."""
        if not self.weights_needed(loss, seed):
            return
        artifact, data = self.sft_run(loss, seed), self.sources(seed)
        with _timed() as seconds:
            if (artifact.path / "record.json").is_file():
                _discard(artifact.path)  # it ended, and weights that are needed again were not kept
            train_loss(
                self._model(seed),
                loss,
                data,
                artifact.path,
                groups=self._build_groups(loss, seed),
                progress=self.progress,
            )
        record = provenance(artifact.inputs, seed=seed, seconds=seconds())
        save_json(artifact.path / "record.json", record)

    def run_rung(self, rung: RungKey) -> None:
        """Screen one checkpoint, train it with GRPO, evaluate what comes out, let it teach."""
        self._screen(self.rung_weights(rung), self.screening(rung), str(rung), after_rl=False)
        if self.recipe.grpo is not None:
            self._grpo(rung)
        for pupil in self.pupils(rung):
            self._build_groups(pupil, rung.seed)
        self.tidy(rung)

    def tidy(self, rung: RungKey) -> None:
        """Delete the weights of a finished cell that are not kept."""
        if self.keep == "nothing":
            shutil.rmtree(self.rung_weights(rung), ignore_errors=True)
        if self.recipe.grpo is None:
            return
        folder = self.grpo_run(rung).path
        shutil.rmtree(folder / "start", ignore_errors=True)
        if self.keep != "all":
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _grpo(self, rung: RungKey) -> None:
        artifact, data = self.grpo_run(rung), self.sources(rung.seed)
        if not self.grpo_is_complete(rung):
            if steps_of(artifact.path) is not None:
                _discard(artifact.path)  # more is asked of it now, and the weights were not kept
            with _timed() as seconds:
                checkpoints = train_grpo(
                    self.rung_weights(rung), data, artifact.path, progress=self.progress
                )
            record = provenance(artifact.inputs, seed=rung.seed, seconds=seconds())
            record |= {"steps": list(checkpoints), "stage_two": monitor_decision(artifact.path)}
            save_json(artifact.path / "record.json", record)
        for step in steps_of(artifact.path) or ():
            checkpoint, name = artifact.path / f"checkpoint-{step}", f"{rung}-step-{step}"
            self._screen(checkpoint, self.evaluation(rung, step), name, after_rl=True)

    def _build_groups(self, loss: str, seed: int) -> Path | None:
        """A GFT loss's response groups, built where they are not there; None without a teacher."""
        teacher, data = self.recipe.teacher(loss), self.sources(seed)
        if teacher is None:
            return None
        file = self.groups(loss, seed).path / GROUPS_FILE
        weights: Path | str | None = teacher.checkpoint
        if weights is None:
            run = self.grpo_run(RungKey(teacher.loss, seed, teacher.depth)).path
            weights = run / f"checkpoint-{(steps_of(run) or [0])[-1]}"
        with self._lock(f"groups-{file.parent.name}"):  # of several losses with one teacher
            if not file.is_file():
                options = self.screen_options(seed, after_rl=False)
                build_response_groups(
                    weights,
                    prompts=PromptSet(data.demonstrations, "demonstrations"),
                    reward=data.reward,
                    sampling=Sampling(
                        num_samples=teacher.num_samples,
                        max_new_tokens=options["max_new_tokens"],
                        batch_size=options["batch_size"],
                        seed=seed,
                    ),
                    loading=Loading(dtype=options["dtype"]),
                    output=Output(file.parent, self.progress),
                )
        return file

    def _model(self, seed: int) -> Path | str:
        data: Sources = self.sources(seed)
        return data.model(self.model_folder(seed))

    def _screen(
        self, checkpoint: Path | str, artifact: Artifact, name: str, *, after_rl: bool
    ) -> None:
        if artifact.path.is_file():
            return
        seed = artifact.inputs["seed"]
        options = self.screen_options(seed, after_rl=after_rl)
        base = self._model(seed) if options.pop("kl_to_base") else None
        with _timed() as seconds:
            report = screen(
                [checkpoint],
                self.sources(seed).prompts(after_rl=after_rl),
                **screening_arguments(seed=seed, base=base, progress=self.progress, **options),
            )
        record = provenance(artifact.inputs, seed=seed, seconds=seconds())
        measured = metrics(report.checkpoints[0])
        content = {"name": name, "measures": measured, "report": report.to_dict(), "record": record}
        save_json(artifact.path, content)

    def _lock(self, name: str) -> FileLock:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / name)


def _discard(folder: Path) -> None:
    """Delete a folder; killed in between, it is gone all the same."""
    away = folder.with_name(f".discarded-{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away)


@contextmanager
def _timed() -> Iterator[Any]:
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started


def provenance(config: Mapping[str, Any], *, seed: int, seconds: float) -> dict[str, Any]:
    """Versions, commit, hardware, seed, resolved configuration and time, as plain data."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "config": dict(config),
        "seed": seed,
        "seconds": round(seconds, 2),
        "finished": now.isoformat(timespec="seconds"),
        **_surroundings(),
    }


@cache
def _surroundings() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": gpus,
        },
    }


def _commit() -> str | None:
    """Of the checkout that this file lies in; None for an installed package."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None


def _processor() -> str:
    """The processor's name; Linux keeps it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
