"""Group fine-tuning on the small task: teacher, groups, training, measures; beside a SmallRun.

    base ─► SFT, 2 epochs ─► GRPO ─► teacher ─► response groups on the demonstrations' prompts
    base ─► GFT on the groups, a checkpoint at each budget ─► measures, KL to the base included

A budget is a number of tokens with a loss, counted in epochs of SFT on the demonstrations: GFT's
epochs are fewer, as each prompt comes with a group. A sum has one right answer, and the expert
gives it: what a teacher adds after duplicates are left out is wrong, and only tells GFT what to
avoid.

Stages leave their results in the run's folder, complete or not at all, and are skipped when they
are there:

    seed-S/grpo/teacher/          the teacher is its last checkpoint
    seed-S/groups/                response groups
    seed-S/gft/NAME-depth-D/      model directories
    seed-S/gft-measures/NAME.json measures of one checkpoint
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from entropyfloor.echelon.depths import train_ladder
from entropyfloor.echelon.rungs import measures
from entropyfloor.echelon.small_grpo import QuietBar
from entropyfloor.echelon.small_run import SmallRun
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS
from entropyfloor.gft.response_groups import ResponseGroups, build_response_groups
from entropyfloor.io import claim_folder, save_json
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rewards import exact_match
from entropyfloor.screening.screen import screen

_TEACHER_DEPTH = 2  # epochs of SFT before its GRPO: the start from which GRPO gets furthest


@dataclass(frozen=True)
class GFTSettings:
    """How GFT is trained on the small task.

    Attributes:
        teacher_samples: draws of the teacher per prompt, from which duplicates are left out.
        learning_rate: constant. Of 1e-4, 3e-4, 1e-3 and 3e-3, tried on seed 0: at 3e-3 the model is
            lost, at 1e-3 (SFT's) more tokens cost pass@10 and bring no pass@1, and 3e-4 ends with a
            higher pass@1 than 1e-4.

    """

    teacher_samples: int = 8
    learning_rate: float = 3e-4


class SmallGFT:
    """GFT's stages in the folder of one seed.

    Args:
        run: the seed, its base, SFT and GRPO.
        settings: see :class:`GFTSettings`.

    Raises:
        ValueError: the folder holds GFT with other settings.

    """

    def __init__(self, run: SmallRun, settings: GFTSettings | None = None) -> None:
        self.run = run
        self.settings = settings or GFTSettings()
        claim_folder(run.folder / "groups", vars(self.settings), file="gft-settings.json")

    @cached_property
    def teacher(self) -> Path:
        """The model after GRPO: it answers more often right than any SFT checkpoint."""
        (start,) = self.run.sft("ce", [_TEACHER_DEPTH], name="teacher-start")
        checkpoints = self.run.grpo(start, "teacher").checkpoints
        return checkpoints[max(checkpoints)]

    @cached_property
    def groups(self) -> ResponseGroups:
        """The demonstrations as experts, and the teacher's samples beside them."""
        return build_response_groups(
            self.teacher,
            prompts=PromptSet(self.run.task.demonstrations, "demonstrations"),
            reward=exact_match,
            output_dir=self.run.folder / "groups",
            num_samples=self.settings.teacher_samples,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=4096,
            seed=self.run.seed,
            dtype="float32",
            device="cpu",
            progress=self.run.progress,
        )

    def group_size(self, options: Mapping[str, Any]) -> float:
        """Mean responses per prompt and step under these options of ``GFTConfig``."""
        from entropyfloor import GFTConfig

        args = GFTConfig("unused", use_cpu=True, bf16=False, **options)
        limits = args.response_counts()
        rows = load_prompts(self.groups.path).rows
        given = 0
        for row in rows:
            sources = [response["source"] for response in row["responses"]]
            given += sum(min(sources.count(source), most) for source, most in limits.items())
        return given / len(rows) + args.num_self

    def gft(
        self,
        name: str,
        budgets: Sequence[float],
        *,
        start: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Train on the groups; one model directory per budget, smallest first.

        Args:
            name: of the checkpoints.
            budgets: tokens with a loss, in epochs of SFT, ascending.
            start: where to start from; the base when left out.
            options: fields of ``GFTConfig``.

        Raises:
            ValueError: ``name`` was trained otherwise here.

        """
        run, chosen = self.run, dict(options or {})
        first = run.base() if start is None else start
        size = self.group_size(chosen)
        # As many responses a step as SFT has, so that equal tokens are equal steps too.
        prompts = max(1, round(run.settings.sft_batch_size / size))
        claim_folder(
            run.folder / "gft",
            {"budgets": list(budgets), "options": chosen, "start": _weights(first)},
            file=f"{name}.json",
        )

        def make(work: Path, save: TrainerCallback) -> Any:
            import torch
            from datasets import Dataset
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from entropyfloor import GFTConfig, GFTTrainer

            settings: dict[str, Any] = {
                "learning_rate": self.settings.learning_rate,
                "lr_scheduler_type": "constant",
                "per_device_train_batch_size": prompts,
                "max_completion_length": MAX_NEW_TOKENS,
                "gradient_checkpointing": False,
                "use_cpu": True,
                "bf16": False,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": not run.progress,
                "seed": run.seed,
            }
            trainer = GFTTrainer(
                AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32),
                exact_match,
                GFTConfig(str(work), **{**settings, **chosen}),
                Dataset.from_list([dict(row) for row in load_prompts(self.groups.path).rows]),
                processing_class=AutoTokenizer.from_pretrained(first),
                callbacks=[save],
            )
            trainer.remove_callback(ProgressCallback)
            if run.progress:
                trainer.add_callback(QuietBar())
            return trainer

        epochs = [budget / size for budget in budgets]
        return train_ladder(make, depths=epochs, folder=run.folder / "gft", name=name)

    def measure(self, checkpoint: Path, name: str) -> dict[str, Any]:
        """Measures on the test problems, with the KL to the base; plain data for JSON.

        Raises:
            ValueError: another checkpoint was measured under this name here.

        """
        run = self.run
        folder = run.folder / "gft-measures"
        claim_folder(folder / "of", {"weights": _weights(checkpoint)}, file=f"{name}.json")
        file = folder / f"{name}.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        report = screen(
            [checkpoint],
            prompts=run.task.test_prompts(),
            reward=exact_match,
            num_samples=run.settings.samples,
            group_size=run.settings.grpo.group_size,
            ks=run.settings.ks,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=4096,
            seed=run.seed,
            base=run.base(),
            dtype="float32",
            device="cpu",
            progress=run.progress,
        ).checkpoints[0]
        document = report.to_dict()
        result = {
            **measures(report),
            "kl_to_base": document["kl_to_base"],
            "training": training_facts(checkpoint),
        }
        save_json(file, result)
        return result


def training_facts(checkpoint: Path) -> dict[str, Any] | None:
    """Steps and tokens with a loss up to a checkpoint of GFT; None for another trainer's."""
    state = checkpoint / TRAINER_STATE_NAME
    if not state.is_file():
        return None
    document = json.loads(state.read_text(encoding="utf-8"))
    tokens: dict[str, float] = {}
    for record in document["log_history"]:
        for key, value in record.items():
            source, _, what = key.partition("/")
            if what == "tokens":
                tokens[source] = tokens.get(source, 0.0) + value
    return {"steps": document["global_step"], "tokens": tokens} if tokens else None


def _weights(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
