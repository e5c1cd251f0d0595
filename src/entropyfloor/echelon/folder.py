"""An echelon on disk: where every result lies, and which are there.

Three words that the whole package uses:

    rung     one loss at one depth in one seed: a checkpoint of SFT
    cell     the record of a rung: measures before RL, after each saved step of RL, seconds
    stage    one unit of work, which the schedule starts and a kill may interrupt: the base of a
             seed, the SFT run of a loss and seed (all its rungs), or a rung's screening and RL

Every result has a place named by a hash of what determines it:

    base/NAME-seed-S-HASH/                  a model that is built here
    sft/LOSS-seed-S-HASH/LOSS-depth-D/      checkpoints; record.json beside them
    screening/LOSS-seed-S-depth-D-HASH.json measures before RL, with their record
    grpo/LOSS-seed-S-depth-D-HASH/          checkpoint-N/, curve.json, record.json
    evaluation/...-step-N-HASH.json         measures after RL
    finished.json                           cells that other runs had finished, by their hash
    groups/seed-S-HASH/                     response groups of a GFT loss

What is there is finished, and never made again; a killed stage goes on from its last checkpoint. A
hash covers what a result depends on, the hash of the result before it included: other settings lead
to another place, and what does not depend on them stays.

Weights that a recipe does not keep are deleted once nothing unfinished needs them. If a later
recipe does, they are trained again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor import __version__
from entropyfloor.echelon.fingerprints import checkpoint_fingerprint, digest
from entropyfloor.echelon.recipe import Recipe
from entropyfloor.echelon.sources import Sources, sources

FINISHED = "finished.json"  # cells of other runs, by the key of what determines them
# How GRPO draws its rollouts, which no setting says: another way is another name, or a folder would
# mix runs of both.
_DRAWN_BY = "shared prompts"
BASE = "base"  # the name of the model that SFT starts from, at depth 0
GROUPS_FILE = "groups.jsonl"  # inside a folder of response groups


class RungKey(NamedTuple):
    """Which rung of a recipe."""

    loss: str
    seed: int
    depth: float

    def __str__(self) -> str:
        return f"{self.loss}-seed-{self.seed}-depth-{self.depth:g}"


@dataclass(frozen=True)
class Stage:
    """One unit of work."""

    kind: str  # base, sft or rung
    seed: int  # of the cell
    loss: str = ""  # empty for the base
    depth: float = 0  # 0 but for a rung

    @property
    def rung(self) -> RungKey:
        """That a rung's stage is about."""
        return RungKey(self.loss, self.seed, self.depth)

    @property
    def name(self) -> str:
        """For people and file names."""
        if self.kind == "base":
            return f"base-seed-{self.seed}"
        return f"sft-{self.loss}-seed-{self.seed}" if self.kind == "sft" else f"rung-{self.rung}"


@dataclass(frozen=True)
class Artifact:
    """Where a result lies; ``key`` is the hash of the ``inputs`` that determine it."""

    path: Path
    inputs: dict[str, Any]
    key: str


class EchelonFolder:
    """Where the results of a recipe are in a folder, and which are there; writes nothing.

    Args:
        recipe: checked.
        folder: may hold results of other recipes.

    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        self.recipe, self.folder = recipe, Path(folder)
        # Asked for again and again; the recipe and its data do not change.
        self.sources = cache(lambda seed: sources(recipe, seed))
        self.base_screening = cache(self._base_screening)
        self.sft_run = cache(self._sft_run)
        self.screening = cache(self._screening)
        self.grpo_run = cache(self._grpo_run)
        self.evaluation = cache(self._evaluation)
        self.groups = cache(self._groups)
        self._finished: dict[str, dict[str, Any]] = read_json(self.folder / FINISHED) or {}

    @property
    def rungs(self) -> list[RungKey]:
        """In the recipe's order."""
        recipe = self.recipe
        return [
            RungKey(x, s, d) for x in recipe.losses for s in recipe.seeds for d in recipe.depths
        ]

    # Where a result lies, and what determines it.

    def _artifact(self, name: str, seed: int, inputs: dict[str, Any], suffix: str = "") -> Artifact:
        threads = self.recipe.threads
        complete = {"entropyfloor": __version__, "seed": seed, "threads": threads, **inputs}
        key = digest(complete)
        return Artifact(self.folder / f"{name}-{key}{suffix}", complete, key)

    def model_folder(self, seed: int) -> Path:
        """Of a model that is built here."""
        key = digest(self.sources(seed).model_fingerprint)
        return self.folder / BASE / f"{self.recipe.model['name']}-seed-{seed}-{key}"

    def rung_weights(self, rung: RungKey) -> Path:
        """The checkpoint of SFT."""
        return self.sft_run(rung.loss, rung.seed).path / f"{rung.loss}-depth-{rung.depth:g}"

    def _sft_run(self, loss: str, seed: int) -> Artifact:
        data: Sources = self.sources(seed)
        options = self.recipe.sft_options(loss)
        inputs: dict[str, Any] = {
            "model": data.model_fingerprint,
            "rows": digest(list(data.rows)),
            "options": options,
            "peft": self.recipe.peft,
            "depths": list(self.recipe.depths),
        }
        if options.get("entropy_floor") is not None:
            inputs["probe prompts"] = digest(data.probe_prompts)
        if validation := data.validation_of(loss):
            inputs["validation"] = digest(list(validation))
        if self.recipe.is_gft(loss):
            inputs["groups"] = self.groups(loss, seed).key
        return self._artifact(f"sft/{loss}-seed-{seed}", seed, inputs)

    def _groups(self, loss: str, seed: int) -> Artifact:
        """Of a GFT loss; those with the same teacher and samples share them."""
        data: Sources = self.sources(seed)
        inputs: dict[str, Any] = {
            "rows": digest(list(data.demonstrations)),
            "reward": data.reward,
            "max_new_tokens": data.tokens(after_rl=False),
        }
        if (teacher := self.recipe.teacher(loss)) is not None:
            inputs["samples"] = teacher.num_samples
            inputs["teacher"] = (
                self.grpo_run(RungKey(teacher.loss, seed, teacher.depth)).key
                if teacher.checkpoint is None
                else checkpoint_fingerprint(teacher.checkpoint)
            )
        return self._artifact(f"groups/seed-{seed}", seed, inputs)

    def _grpo_run(self, rung: RungKey) -> Artifact:
        data: Sources = self.sources(rung.seed)
        inputs = {
            "start": [self.sft_run(rung.loss, rung.seed).key, rung.depth],
            "grpo": self.recipe.grpo,
            "prompts": digest(list(data.rl)),
            "reward": data.reward,
            "max_new_tokens": data.tokens(after_rl=False),
            "drawn by": _DRAWN_BY,
        }
        return self._artifact(f"grpo/{rung}", rung.seed, inputs)

    def _base_screening(self, seed: int) -> Artifact:
        inputs = self._screening_inputs(self.sources(seed).model_fingerprint, seed, after_rl=False)
        return self._artifact(f"screening/{BASE}-seed-{seed}", seed, inputs, ".json")

    def _screening(self, rung: RungKey) -> Artifact:
        start = [self.sft_run(rung.loss, rung.seed).key, rung.depth]
        inputs = self._screening_inputs(start, rung.seed, after_rl=False)
        return self._artifact(f"screening/{rung}", rung.seed, inputs, ".json")

    def _evaluation(self, rung: RungKey, step: int) -> Artifact:
        start = [self.grpo_run(rung).key, step]
        inputs = self._screening_inputs(start, rung.seed, after_rl=True)
        return self._artifact(f"evaluation/{rung}-step-{step}", rung.seed, inputs, ".json")

    def _screening_inputs(self, start: Any, seed: int, *, after_rl: bool) -> dict[str, Any]:
        options = self.screen_options(seed, after_rl=after_rl)
        del options["batch_size"]  # changes speed and memory only
        if not options["kl_to_base"]:
            del options["kl_to_base"]
        prompts = self.sources(seed).prompts(after_rl=after_rl).full_digest
        return {"start": start, "options": options, "prompts": prompts}

    def screen_options(self, seed: int, *, after_rl: bool) -> dict[str, Any]:
        """Arguments of ``screen`` beside checkpoint, prompts and base; and ``kl_to_base``."""
        options = self.recipe.screening_options(after_rl=after_rl)
        del options["prompts"]
        data: Sources = self.sources(seed)
        return {
            **options,
            "ks": list(self.recipe.ks),
            "max_new_tokens": data.tokens(after_rl=after_rl),
            "tau_h": self.recipe.tau_h,
            "reward": data.reward,
        }

    # What is there.

    def missing(self) -> list[Stage]:
        """Stages that have to run, in an order that works."""
        recipe = self.recipe
        stages = [Stage("base", seed) for seed in recipe.seeds if self.base(seed) is None]
        runs = [(loss, seed) for seed in recipe.seeds for loss in recipe.losses]
        stages += [Stage("sft", seed, x) for x, seed in runs if self.weights_needed(x, seed)]
        for loss, seed in runs:
            # Deepest first: should the run be stopped early, the ends of the ladder are there.
            for rung in reversed(self.unfinished_rungs(loss, seed)):
                stages.append(Stage("rung", seed, loss, rung.depth))
        return stages

    def needs(self, stage: Stage) -> set[Stage]:
        """What must have finished before; of them, those that are not missing do not matter."""
        base = Stage("base", stage.seed)
        if stage.kind == "base":
            return set()
        if stage.kind == "rung":
            return {base, Stage("sft", stage.seed, stage.loss)}
        teacher = self.recipe.teacher(stage.loss)
        if teacher is None or teacher.checkpoint is not None:
            return {base}
        return {base, Stage("rung", stage.seed, teacher.loss, teacher.depth)}

    def unfinished_rungs(self, loss: str, seed: int) -> list[RungKey]:
        """Of one loss and seed, shallowest first."""
        rungs = (RungKey(loss, seed, depth) for depth in self.recipe.depths)
        return [rung for rung in rungs if not self.is_finished(rung)]

    def is_finished(self, rung: RungKey) -> bool:
        """Whether its cell is complete and no GFT loss waits for its groups."""
        return self.cell(rung) is not None and not self.pupils(rung)

    def pupils(self, rung: RungKey) -> list[str]:
        """GFT losses that still have to be trained, on groups of this rung that are not there."""
        waiting = []
        for name in self.recipe.losses:
            teacher = self.recipe.teacher(name)
            if teacher is None or (teacher.loss, teacher.depth) != (rung.loss, rung.depth):
                continue
            groups = self.groups(name, rung.seed).path / GROUPS_FILE
            if self.weights_needed(name, rung.seed) and not groups.is_file():
                waiting.append(name)
        return waiting

    def weights_needed(self, loss: str, seed: int) -> bool:
        """Whether SFT has to run: a cell is unfinished and its checkpoint is not there."""
        return any(
            not self.rung_weights(rung).is_dir()
            and (
                not self.screening(rung).path.is_file()
                or (self.recipe.grpo is not None and not self.grpo_is_complete(rung))
            )
            for rung in self.unfinished_rungs(loss, seed)
        )

    def grpo_is_complete(self, rung: RungKey) -> bool:
        """Whether the GRPO run has ended and what is still wanted of its weights is there."""
        folder = self.grpo_run(rung).path
        steps = steps_of(folder)
        if steps is None:
            return False
        wanted = [step for step in steps if not self.evaluation(rung, step).path.is_file()]
        if steps and self.pupils(rung):
            wanted.append(steps[-1])
        return all((folder / f"checkpoint-{step}").is_dir() for step in wanted)

    def cell_key(self, rung: RungKey) -> str:
        """Hash of all that determines a cell."""
        keys = [self.screening(rung).key]
        if self.recipe.grpo is not None:
            keys.append(self.evaluation(rung, 0).key)
        return digest(keys)

    def cell(self, rung: RungKey) -> dict[str, Any] | None:
        """One finished cell, as plain data for JSON; None while something of it is missing."""
        key = self.cell_key(rung)
        if (finished := self._finished.get(key)) is not None:
            return {**finished, **rung._asdict()}
        before = read_json(self.screening(rung).path)
        if before is None:
            return None
        cell = {**rung._asdict(), "key": key, "before": _measured(before), "after": {}}
        seconds = {"screening": before["record"]["seconds"]}
        if self.recipe.grpo is not None:
            run = read_json(self.grpo_run(rung).path / "record.json")
            if run is None:
                return None
            for step in run["steps"]:
                measured = read_json(self.evaluation(rung, step).path)
                if measured is None:
                    return None
                cell["after"][str(step)] = _measured(measured)
            seconds["grpo"] = run["seconds"]
            if run.get("stage_two"):
                cell["stage_two"] = run["stage_two"]
        return {**cell, "seconds": seconds}

    def base(self, seed: int) -> dict[str, Any] | None:
        """Measures of the model that SFT starts from; None before they are there."""
        artifact = self.base_screening(seed)
        base = self._finished.get(artifact.key) or read_json(artifact.path)
        return None if base is None else base["measures"]


def _measured(screening: Mapping[str, Any]) -> dict[str, Any]:
    """A screening's measures, and prompt by prompt what paired comparisons need."""
    (checkpoint,) = screening["report"]["checkpoints"]
    return {**screening["measures"], "prompt_results": checkpoint["prompt_results"]}


def steps_of(folder: Path) -> list[int] | None:
    """After which steps a finished GRPO run left checkpoints; None if it has not finished."""
    record = read_json(folder / "record.json")
    return None if record is None else record["steps"]


def read_json(file: Path) -> Any:
    """What a file holds; None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
