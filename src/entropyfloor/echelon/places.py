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
from functools import cache
from pathlib import Path
from typing import Any

from entropyfloor import __version__
from entropyfloor.echelon.depths import depth_directory
from entropyfloor.echelon.recipe import Recipe
from entropyfloor.echelon.sources import Sources, digest, sources

BASE = "base"  # the name of the model that SFT starts from, at depth 0


class Places:
    """Where the cells of a recipe are in a folder, and which are there; writes nothing.

    Args:
        recipe: checked.
        folder: may hold cells of other recipes.

    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        self.recipe, self.folder = recipe, Path(folder)
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
        return self.folder / "screening" / f"{cell_name(loss, seed, depth)}-{key}.json"

    def grpo_folder(self, loss: str, seed: int, depth: float) -> Path:
        """Of one GRPO run."""
        key = self._grpo_key(loss, seed, depth)
        return self.folder / "grpo" / f"{cell_name(loss, seed, depth)}-{key}"

    def evaluation_file(self, loss: str, seed: int, depth: float, step: int) -> Path:
        """Measures of a checkpoint after so many steps of GRPO."""
        key = digest(self._evaluation_facts(loss, seed, depth, step))
        return self.folder / "evaluation" / f"{cell_name(loss, seed, depth)}-step-{step}-{key}.json"

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
        steps = steps_of(folder)
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
            steps = steps_of(folder)
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


def cell_name(loss: str, seed: int, depth: float) -> str:
    """``ce-seed-0-depth-2``."""
    return f"{loss}-seed-{seed}-depth-{depth:g}"


def steps_of(folder: Path) -> list[int] | None:
    """After which steps a finished GRPO run left checkpoints; None if it has not finished."""
    record = _read(folder / "record.json")
    return None if record is None else record["steps"]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found
