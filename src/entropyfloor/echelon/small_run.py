"""SFT, screening, GRPO and screening again on the small task, in minutes on two cores.

    base ─► SFT at growing depth ─► screen ─► GRPO ─► screen every GRPO checkpoint ─► cell

Every stage leaves its result in the folder, complete or not at all, and is skipped when it is
there:

    settings.json                    what this folder was made with; other settings are refused
    seed-S/base/                     the pretrained small model
    seed-S/sft/NAME-depth-D/         model directories
    seed-S/grpo/NAME/                checkpoint-N/ and curve.json
    seed-S/screening/NAME/           measures of one checkpoint
    seed-S/cells/NAME.json           measures before and after GRPO, the peak, the curve

The stages are methods, so that an experiment can put its own in place of one: another trainer in
place of SFT, say, whose model directory then goes to ``cell``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entropyfloor import __version__
from entropyfloor.echelon.depths import DepthTraining, train_depths
from entropyfloor.echelon.rungs import measures
from entropyfloor.echelon.screening_store import load_screening
from entropyfloor.echelon.small_grpo import GRPORun, GRPOTraining, train_grpo
from entropyfloor.echelon.small_model import small_model_directory
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS, SmallTask, small_task
from entropyfloor.io import claim_folder, save_json
from entropyfloor.rollouts.rewards import exact_match
from entropyfloor.screening.report import CheckpointScreening
from entropyfloor.screening.screen import screen


@dataclass(frozen=True)
class SmallSettings:
    """Everything that determines a small run's numbers, beside seed, loss and depth.

    Attributes:
        pretraining_steps: of the base model. At 325 it has begun to add: pass@1 about .06 in three
            seeds. At 500 it is .15, and what GRPO ends with comes close to what there is to win.
        pretraining_problems: sums it reads, most with random answers.
        demonstrations: worked sums for SFT.
        rl_prompts: problems for GRPO.
        test_problems: held-out problems that are screened.
        samples: rollouts of each, at least GRPO's group size.
        sft_learning_rate: constant.
        sft_batch_size: rows per step.
        grpo: GRPO's own settings.

    """

    pretraining_steps: int = 325
    pretraining_problems: int = 7000
    demonstrations: int = 100
    rl_prompts: int = 600
    test_problems: int = 400
    samples: int = 32
    sft_learning_rate: float = 1e-3
    sft_batch_size: int = 32
    grpo: GRPOTraining = field(default_factory=GRPOTraining)

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of pass@k: 1, 10, group size and all samples, as far as there are samples."""
        wanted = {1, 10, self.grpo.group_size, self.samples}
        return tuple(sorted(k for k in wanted if k <= self.samples))


class SmallRun:
    """One seed of the small experiment in a folder.

    Args:
        folder: shared by all seeds; made if missing.
        seed: of the problems' split, the base model, SFT, GRPO and screening.
        settings: see :class:`SmallSettings`.
        progress: show progress bars on standard error.

    Raises:
        ValueError: the folder holds a run with other settings.

    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int = 0,
        settings: SmallSettings | None = None,
        progress: bool = True,
    ) -> None:
        self.settings = settings or SmallSettings()
        self.seed = seed
        self.progress = progress
        claim_folder(Path(folder), {"entropyfloor": __version__, **asdict(self.settings)})
        self.folder = Path(folder) / f"seed-{seed}"

    @cached_property
    def task(self) -> SmallTask:
        """The seed's problems."""
        return small_task(
            seed=self.seed,
            pretraining=self.settings.pretraining_problems,
            demonstrations=self.settings.demonstrations,
            rl_prompts=self.settings.rl_prompts,
            test=self.settings.test_problems,
        )

    def base(self) -> Path:
        """The pretrained model's directory."""
        return small_model_directory(
            self.folder / "base",
            self.task.pretraining,
            steps=self.settings.pretraining_steps,
            seed=self.seed,
        )

    def sft(
        self,
        loss: str,
        depths: Sequence[int],
        *,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Train the base on the demonstrations; one model directory per depth, shallowest first.

        Args:
            loss: a name that ``SEDConfig`` knows.
            depths: epochs, ascending.
            name: what the checkpoints are called: ``NAME-depth-D``; ``loss`` when left out.
            options: further fields of ``SEDConfig``.

        Raises:
            ValueError: ``name`` was trained with another loss, other depths or options here.

        """
        label = loss if name is None else name
        chosen = {"loss": loss, "depths": list(depths), "options": dict(options or {})}
        claim_folder(self.folder / "sft", chosen, file=f"{label}.json")
        training = DepthTraining(
            depths=tuple(depths),
            learning_rate=self.settings.sft_learning_rate,
            batch_size=self.settings.sft_batch_size,
            bf16=False,
            seed=self.seed,
        )
        rows = self.task.demonstration_dataset().to_list()
        how: dict[str, Any] = {"disable_tqdm": not self.progress, "use_cpu": True}
        return train_depths(
            self.base(),
            rows,
            loss=loss,
            training=training,
            folder=self.folder / "sft",
            name=label,
            options={**how, **(options or {})},
        )

    def screen(self, checkpoint: str | Path, name: str) -> CheckpointScreening:
        """Screen one checkpoint on the test problems; called ``name`` in the report.

        Raises:
            ValueError: another checkpoint was screened under this name here.

        """
        self._claim_name("screening", name, checkpoint)
        folder = self.folder / "screening" / name
        report = load_screening(folder)
        if report is None:
            report = screen(
                [checkpoint],
                prompts=self.task.test_prompts(),
                reward=exact_match,
                num_samples=self.settings.samples,
                group_size=self.settings.grpo.group_size,
                ks=self.settings.ks,
                max_new_tokens=MAX_NEW_TOKENS,
                batch_size=4096,
                seed=self.seed,
                dtype="float32",
                device="cpu",
                progress=self.progress,
            )
            # The report alone: rollouts take seconds to draw and megabytes to keep.
            save_json(folder / "screening.json", report.to_dict())
        return replace(report.checkpoints[0], name=name)

    def grpo(
        self, checkpoint: str | Path, name: str, *, callbacks: Sequence[TrainerCallback] = ()
    ) -> GRPORun:
        """Train a checkpoint with GRPO; it lands in ``grpo/NAME``.

        Raises:
            ValueError: another checkpoint was trained under this name here.

        """
        self._claim_name("grpo", name, checkpoint)
        return train_grpo(
            checkpoint,
            self.task.rl_dataset(),
            reward=exact_match,
            max_new_tokens=MAX_NEW_TOKENS,
            training=self.settings.grpo,
            seed=self.seed,
            folder=self.folder / "grpo" / name,
            callbacks=callbacks,
            progress=self.progress,
        )

    def cell(
        self, checkpoint: str | Path, name: str, *, callbacks: Sequence[TrainerCallback] = ()
    ) -> dict[str, Any]:
        """Screen a checkpoint, train it with GRPO, screen what comes out; compare.

        Returns:
            plain data for JSON, as in ``cells/NAME.json``: ``before`` and ``after`` (step ->)
            measures, ``peak`` (measure -> best value after GRPO and its step), ``curve`` and
            ``stage_two`` (what a collapse monitor decided).

        """
        file = self.folder / "cells" / f"{name}.json"
        self._claim_name("screening", name, checkpoint)
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        before = measures(self.screen(checkpoint, name))
        run = self.grpo(checkpoint, name, callbacks=callbacks)
        after = {
            str(step): measures(self.screen(directory, f"{name}-grpo-{step}"))
            for step, directory in run.checkpoints.items()
        }
        result = {
            "name": name,
            "seed": self.seed,
            "before": before,
            "after": after,
            "peak": _peak(after),
            "curve": list(run.curve),
            "stage_two": run.stage_two,
        }
        save_json(file, result)
        return result

    def _claim_name(self, stage: str, name: str, checkpoint: str | Path) -> None:
        """A name stands for the weights that it was first used for."""
        weights = (Path(checkpoint) / "model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()[:16]
        claim_folder(self.folder / stage / name, {"weights": digest}, file="checkpoint.json")


def _peak(after: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """``pass_at_K`` -> the highest value over the checkpoints, and the first step that has it."""
    peak: dict[str, dict[str, float]] = {}
    for step, measured in after.items():
        for k, value in measured["pass_at_k"].items():
            key = f"pass_at_{k}"
            if key not in peak or value > peak[key]["value"]:
                peak[key] = {"value": value, "step": int(step)}
    return peak
