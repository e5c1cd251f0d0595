"""The stages of an echelon. Each does what is missing of it, in the `Places` of its results."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entropyfloor.echelon.depths import DepthTraining, train_depths
from entropyfloor.echelon.places import BASE, Places, cell_name, steps_of
from entropyfloor.echelon.provenance import provenance
from entropyfloor.echelon.recipe import Recipe, lora_config
from entropyfloor.echelon.rungs import measures
from entropyfloor.echelon.small_grpo import GRPORun, train_grpo
from entropyfloor.echelon.sources import Sources, digest
from entropyfloor.io import save_json
from entropyfloor.models.merging import merged_directory
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import reward_by_name
from entropyfloor.screening.screen import screen

KEEP = ("rungs", "all", "nothing")


class Cells(Places):
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
        super().__init__(recipe, folder)
        self.keep, self.progress = keep, progress

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
        save_json(folder / "record.json", provenance(facts, seed=seed, seconds=seconds()))

    def run_rung(self, loss: str, seed: int, depth: float) -> None:
        """Screen one checkpoint, train it with GRPO, evaluate what comes out."""
        weights = self.rung_weights(loss, seed, depth)
        name = cell_name(loss, seed, depth)
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
        name = cell_name(loss, seed, depth)
        done = steps_of(folder)
        files = {step: self.evaluation_file(loss, seed, depth, step) for step in done or ()}
        gone = [s for s, file in files.items() if not file.is_file()]
        if any(not (folder / f"checkpoint-{step}").is_dir() for step in gone):
            _discard(folder)  # another evaluation is asked for, and the weights were not kept
            done = None
        if done is None:
            with _timed() as seconds:
                run = self._train_grpo(weights, folder, seed)
            facts = self._grpo_facts(loss, seed, depth)
            record = provenance(facts, seed=seed, seconds=seconds())
            save_json(folder / "record.json", {**record, "steps": sorted(run.checkpoints)})
        for step in steps_of(folder) or ():
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

        found: Sources = self.sources(seed)
        on_gpu = torch.cuda.is_available()
        return train_grpo(
            # GRPO starts an adapter of its own on a whole model, as the rank-inversion paper does.
            merged_directory(weights, folder / "start"),
            PromptSet(found.rl, "prompts for RL").dataset(),
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
        record = provenance(facts, seed=seed, seconds=seconds())
        measured = measures(report.checkpoints[0])
        save_json(file, {"name": name, "measures": measured, "record": record})


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
