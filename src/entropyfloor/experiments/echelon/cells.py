"""One echelon on disk: every stage has a place named by a hash of what determines it.

    base/small-seed-S-HASH/                 the built small model
    sft/LOSS-seed-S-HASH/LOSS-depth-D/      checkpoints; record.json beside them
    screening/LOSS-seed-S-depth-D-HASH.json measures before RL, with their record
    grpo/LOSS-seed-S-depth-D-HASH/          checkpoint-N/, curve.json, record.json
    evaluation/...-step-N-HASH.json         measures after RL

A finished stage is one whose file is there, and never runs again; a killed one goes on from its
last checkpoint. What a hash covers is what a stage depends on, the hash of the stage before it
included: other settings lead to another place, and what does not depend on them stays.

Weights that a recipe does not keep are deleted once nothing unfinished needs them. If a later
recipe does, they are trained again.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from entropyfloor import __version__
from entropyfloor.experiments.cell_measures import measures
from entropyfloor.experiments.depths import DepthTraining, depth_directory, train_depths
from entropyfloor.experiments.echelon.recipe import Recipe, lora_config
from entropyfloor.experiments.echelon.run_facts import run_facts
from entropyfloor.experiments.echelon.sources import Sources, digest, sources
from entropyfloor.experiments.small_grpo import GRPORun, train_grpo
from entropyfloor.models.merging import merged_directory
from entropyfloor.screening.rewards import reward_by_name
from entropyfloor.screening.screen import screen
from entropyfloor.whole_files import save_json

KEEP = ("rungs", "all", "nothing")
BASE = "base"  # the name of the model that SFT starts from, at depth 0


class Cells:
    """The cells of a recipe in a folder.

    Args:
        recipe: checked.
        folder: made if missing; may hold cells of other recipes.
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
        self.recipe, self.folder, self.keep, self.progress = recipe, Path(folder), keep, progress
        self.sources = cache(lambda seed: sources(recipe, seed))
        # Asked for with every path; the recipe and its data do not change.
        self._sft_key = cache(lambda loss, seed: digest(self._sft_facts(loss, seed)))
        self._grpo_key = cache(
            lambda loss, seed, depth: digest(self._grpo_facts(loss, seed, depth))
        )
        self._prompts_key = cache(
            lambda seed, after_rl: self.sources(seed).prompts(after_rl=after_rl).full_digest
        )

    # What determines a stage.

    def _sft_facts(self, loss: str, seed: int) -> dict[str, Any]:
        found: Sources = self.sources(seed)
        facts = {
            "entropyfloor": __version__,
            "model": found.model_facts,
            "rows": digest(list(found.rows)),
            "options": self.recipe.sft_options(loss),
            "peft": self.recipe.peft,
            "depths": list(self.recipe.depths),
            "seed": seed,
            "threads": self.recipe.threads,
        }
        if self._has_floor(loss):
            facts["probe prompts"] = digest(found.probe_prompts)
        return facts

    def _has_floor(self, loss: str) -> bool:
        return self.recipe.sft_options(loss).get("entropy_floor") is not None

    def _screening_facts(self, start: Any, seed: int, *, after_rl: bool) -> dict[str, Any]:
        return {
            "entropyfloor": __version__,
            "start": start,
            "options": {
                name: value
                for name, value in self._screen_options(seed, after_rl=after_rl).items()
                if name != "batch_size"  # changes speed and memory only
            },
            "prompts": self._prompts_key(seed, after_rl),
            "seed": seed,
            "threads": self.recipe.threads,
        }

    def _base_facts(self, seed: int) -> dict[str, Any]:
        return self._screening_facts(self.sources(seed).model_facts, seed, after_rl=False)

    def _rung_facts(self, loss: str, seed: int, depth: float) -> dict[str, Any]:
        return self._screening_facts([self._sft_key(loss, seed), depth], seed, after_rl=False)

    def _evaluation_facts(self, loss: str, seed: int, depth: float, step: int) -> dict[str, Any]:
        return self._screening_facts([self._grpo_key(loss, seed, depth), step], seed, after_rl=True)

    def _grpo_facts(self, loss: str, seed: int, depth: float) -> dict[str, Any]:
        found: Sources = self.sources(seed)
        return {
            "entropyfloor": __version__,
            "start": [self._sft_key(loss, seed), depth],
            "grpo": self.recipe.grpo,
            "prompts": digest(list(found.rl)),
            "reward": found.reward,
            "max_new_tokens": found.tokens(after_rl=False),
            "seed": seed,
            "threads": self.recipe.threads,
        }

    def _screen_options(self, seed: int, *, after_rl: bool) -> dict[str, Any]:
        found: Sources = self.sources(seed)
        options = self.recipe.screening_options(after_rl=after_rl)
        del options["prompts"]
        return {
            **options,
            "ks": list(self.recipe.ks),
            "max_new_tokens": found.tokens(after_rl=after_rl),
            "tau_h": self.recipe.tau_h,
            "reward": found.reward,
        }

    # Where a stage is kept.

    def sft_folder(self, loss: str, seed: int) -> Path:
        """Of one SFT run."""
        return self.folder / "sft" / f"{loss}-seed-{seed}-{self._sft_key(loss, seed)}"

    def rung_weights(self, loss: str, seed: int, depth: float) -> Path:
        """Of one checkpoint of it."""
        return depth_directory(self.sft_folder(loss, seed), loss, depth)

    def base_file(self, seed: int) -> Path:
        """Measures of the model that SFT starts from."""
        key = digest(self._base_facts(seed))
        return self.folder / "screening" / f"{BASE}-seed-{seed}-{key}.json"

    def screening_file(self, loss: str, seed: int, depth: float) -> Path:
        """Measures of a checkpoint before RL."""
        key = digest(self._rung_facts(loss, seed, depth))
        return self.folder / "screening" / f"{_rung(loss, seed, depth)}-{key}.json"

    def grpo_folder(self, loss: str, seed: int, depth: float) -> Path:
        """Of one GRPO run."""
        key = self._grpo_key(loss, seed, depth)
        return self.folder / "grpo" / f"{_rung(loss, seed, depth)}-{key}"

    def evaluation_file(self, loss: str, seed: int, depth: float, step: int) -> Path:
        """Measures of a checkpoint after so many steps of GRPO."""
        key = digest(self._evaluation_facts(loss, seed, depth, step))
        return self.folder / "evaluation" / f"{_rung(loss, seed, depth)}-step-{step}-{key}.json"

    # What is there.

    def unfinished_depths(self, loss: str, seed: int) -> list[float]:
        """Depths whose cell is not complete."""
        return [d for d in self.recipe.depths if self.cell(loss, seed, d) is None]

    def weights_needed(self, loss: str, seed: int) -> bool:
        """Whether SFT has to run: a cell is unfinished and its checkpoint is not there."""
        return any(
            self._needs_weights(loss, seed, depth)
            and not self.rung_weights(loss, seed, depth).is_dir()
            for depth in self.unfinished_depths(loss, seed)
        )

    def _needs_weights(self, loss: str, seed: int, depth: float) -> bool:
        if not self.screening_file(loss, seed, depth).is_file():
            return True
        if self.recipe.grpo is None:
            return False
        folder = self.grpo_folder(loss, seed, depth)
        steps = _steps(folder)
        return steps is None or any(
            not self.evaluation_file(loss, seed, depth, step).is_file()
            and not (folder / f"checkpoint-{step}").is_dir()
            for step in steps
        )

    def cell(self, loss: str, seed: int, depth: float) -> dict[str, Any] | None:
        """One finished cell, as plain data for JSON; None while something of it is missing."""
        before = _read(self.screening_file(loss, seed, depth))
        if before is None:
            return None
        found = {"loss": loss, "seed": seed, "depth": depth, "before": before["measures"]}
        after: dict[str, Any] = {}
        seconds = {"screening": before["record"]["seconds"]}
        if self.recipe.grpo is not None:
            folder = self.grpo_folder(loss, seed, depth)
            steps = _steps(folder)
            if steps is None:
                return None
            for step in steps:
                measured = _read(self.evaluation_file(loss, seed, depth, step))
                if measured is None:
                    return None
                after[str(step)] = measured["measures"]
            seconds["grpo"] = (_read(folder / "record.json") or {}).get("seconds", 0.0)
        return {**found, "after": after, "seconds": seconds}

    def base(self, seed: int) -> dict[str, Any] | None:
        """Measures of the model that SFT starts from; None before they are there."""
        found = _read(self.base_file(seed))
        return None if found is None else found["measures"]

    # The stages. Each does what is missing of it.

    def run_base(self, seed: int) -> None:
        """Build the model if it is built here, and screen it."""
        model = self._model(seed)
        facts = self._base_facts(seed)
        self._screen(model, self.base_file(seed), seed, facts, BASE, after_rl=False)

    def run_sft(self, loss: str, seed: int) -> None:
        """One SFT run, if a cell needs its weights."""
        if not self.weights_needed(loss, seed):
            return
        folder, facts = self.sft_folder(loss, seed), self._sft_facts(loss, seed)
        with _timed() as seconds:
            found: Sources = self.sources(seed)
            if (folder / "record.json").is_file():
                _discard(folder)  # it ended, and weights that are needed again were not kept
            options = self.recipe.sft_options(loss)
            training = DepthTraining(
                depths=self.recipe.depths,
                learning_rate=options.pop("learning_rate"),
                batch_size=options.pop("per_device_train_batch_size"),
                bf16=options.pop("bf16", False),
                seed=seed,
            )
            train_depths(
                self._model(seed),
                [dict(row) for row in found.rows],
                loss=options.pop("loss", "sed"),
                training=training,
                folder=folder,
                name=loss,
                options={"disable_tqdm": not self.progress, **options},
                peft_config=lora_config(self.recipe),
                probe_prompts=found.probe_prompts if self._has_floor(loss) else None,
            )
        save_json(folder / "record.json", run_facts(facts, seed=seed, seconds=seconds()))

    def run_rung(self, loss: str, seed: int, depth: float) -> None:
        """Screen one checkpoint, train it with GRPO, evaluate what comes out."""
        weights = self.rung_weights(loss, seed, depth)
        name = _rung(loss, seed, depth)
        facts = self._rung_facts(loss, seed, depth)
        file = self.screening_file(loss, seed, depth)
        self._screen(weights, file, seed, facts, name, after_rl=False)
        if self.recipe.grpo is not None:
            self._grpo(weights, loss, seed, depth)
        self.tidy(loss, seed, depth)

    def tidy(self, loss: str, seed: int, depth: float) -> None:
        """Delete the weights of a finished cell that are not kept."""
        if self.keep == "nothing":
            shutil.rmtree(self.rung_weights(loss, seed, depth), ignore_errors=True)
        if self.recipe.grpo is None:
            return
        folder = self.grpo_folder(loss, seed, depth)
        shutil.rmtree(folder / "start", ignore_errors=True)
        if self.keep != "all":
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _grpo(self, weights: Path, loss: str, seed: int, depth: float) -> None:
        folder = self.grpo_folder(loss, seed, depth)
        name = _rung(loss, seed, depth)
        done = _steps(folder)
        files = {step: self.evaluation_file(loss, seed, depth, step) for step in done or ()}
        gone = [s for s, file in files.items() if not file.is_file()]
        if any(not (folder / f"checkpoint-{step}").is_dir() for step in gone):
            _discard(folder)  # another evaluation is asked for, and the weights were not kept
            done = None
        if done is None:
            with _timed() as seconds:
                run = self._train_grpo(weights, folder, seed)
            facts = self._grpo_facts(loss, seed, depth)
            record = run_facts(facts, seed=seed, seconds=seconds())
            save_json(folder / "record.json", {**record, "steps": sorted(run.checkpoints)})
        for step in _steps(folder) or ():
            facts = self._evaluation_facts(loss, seed, depth, step)
            self._screen(
                folder / f"checkpoint-{step}",
                self.evaluation_file(loss, seed, depth, step),
                seed,
                facts,
                f"{name}-step-{step}",
                after_rl=True,
            )

    def _train_grpo(self, weights: Path, folder: Path, seed: int) -> GRPORun:
        import torch
        from datasets import Dataset

        found: Sources = self.sources(seed)
        on_gpu = torch.cuda.is_available()
        return train_grpo(
            # GRPO starts an adapter of its own on a whole model, as the rank-inversion paper does.
            merged_directory(weights, folder / "start"),
            Dataset.from_list([dict(row) for row in found.rl]),
            reward=reward_by_name(found.reward),
            max_new_tokens=found.tokens(after_rl=False),
            training=self.recipe.grpo_training(),
            seed=seed,
            folder=folder,
            progress=self.progress,
            options={"use_cpu": not on_gpu, "bf16": on_gpu, **self.recipe.grpo_options()},
            peft_config=lora_config(self.recipe),
        )

    def _model(self, seed: int) -> Path | str:
        found: Sources = self.sources(seed)
        key = digest(found.model_facts)
        return found.model(self.folder / BASE / f"small-seed-{seed}-{key}")

    def _screen(
        self,
        checkpoint: Path | str,
        file: Path,
        seed: int,
        facts: Mapping[str, Any],
        name: str,
        *,
        after_rl: bool,
    ) -> None:
        if file.is_file():
            return
        found: Sources = self.sources(seed)
        with _timed() as seconds:
            report = screen(
                [checkpoint],
                prompts=found.prompts(after_rl=after_rl),
                seed=seed,
                progress=self.progress,
                **self._screen_options(seed, after_rl=after_rl),
            )
        record = run_facts(facts, seed=seed, seconds=seconds())
        measured = measures(report.checkpoints[0])
        save_json(file, {"name": name, "measures": measured, "record": record})


def _rung(loss: str, seed: int, depth: float) -> str:
    return f"{loss}-seed-{seed}-depth-{depth:g}"


def _steps(folder: Path) -> list[int] | None:
    """After which steps a finished GRPO run left checkpoints; None if it has not finished."""
    record = _read(folder / "record.json")
    return None if record is None else record["steps"]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


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
