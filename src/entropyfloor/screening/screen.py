"""``screen``: find the checkpoints that reinforcement learning can still improve.

Rollouts of every checkpoint on one prompt set, measured and judged. Everything that can be checked
without a model is checked first: arguments, prompts, reward columns, every checkpoint's files,
tokenizer and context.
"""

import gc
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from entropyfloor import __version__
from entropyfloor.measures.groups import p_star
from entropyfloor.measures.pass_at_k import default_ks
from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import (
    context_length,
    load_checkpoint,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from entropyfloor.screening.measure import MeasureSettings, measure_checkpoint
from entropyfloor.screening.outputs import write_report, write_rollouts
from entropyfloor.screening.prompts import PromptSet
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.screening.rewards import (
    RewardFunction,
    check_reward_columns,
    reward_by_name,
    reward_name,
)
from entropyfloor.screening.rollouts import (
    Rollout,
    SamplingSettings,
    check_lengths,
    encode_prompts,
    generate_rollouts,
)
from entropyfloor.screening.scoring import score_rollouts
from entropyfloor.screening.verdict import TAU_H, check_tau_h


@dataclass(frozen=True)
class _Task:
    """One checkpoint, checked and tokenised, waiting to be loaded."""

    source: CheckpointSource
    encoded: list[list[int]]


def screen(
    checkpoints: Sequence[str | Path],
    *,
    prompts: PromptSet,
    reward: RewardFunction | str | None = None,
    num_samples: int = 8,
    group_size: int = 8,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    tau_h: float = TAU_H,
    ks: Sequence[int] | None = None,
    success_threshold: float = 1.0,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> ScreeningReport:
    """Screen checkpoints before RL.

    Args:
        checkpoints: model or PEFT adapter directories, hub ids, or trainer output folders.
        prompts: see ``entropyfloor.screening.prompts.load_prompts``.
        reward: a function in trl's signature, or a name; without one only entropy is judged.
        num_samples: rollouts per prompt; at least ``group_size`` with a reward.
        group_size: rollouts per prompt that RL will use.
        max_new_tokens: length limit; rollouts that hit it are reported as truncated.
        temperature: of sampling; the entropy is always that of the distribution at temperature 1.
        top_p: nucleus of sampling; 1 is off.
        top_k: most probable tokens to sample from; 0 is off.
        batch_size: rollouts generated at once; does not change them.
        seed: of the rollouts and the bootstrap.
        tau_h: flagged below this mean entropy, nats.
        ks: pass@k to report; 1, 2, 4, ... and ``num_samples`` when left out.
        success_threshold: a rollout passes if its reward is at least this.
        dtype: ``"auto"`` (the checkpoint's), float32, bfloat16 or float16.
        device: CUDA if there is one, else CPU, when left out.
        trust_remote_code: run model code that travels with a checkpoint.
        output_dir: if given, gets screening.json, screening.md, screening.png and the rollouts as
            JSONL.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: an argument, prompt, reward or checkpoint that cannot work; the message says
            how to mend it.
        FileNotFoundError: a checkpoint that does not exist.

    """
    sampling = SamplingSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        batch_size=batch_size,
        seed=seed,
    )
    check_tau_h(tau_h)
    p_star(group_size)  # raises for an impossible group size
    all_ks = _check_samples(num_samples, group_size, ks, scored=reward is not None)
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    if function is not None:
        check_reward_columns(function, prompts)
    resolve_dtype(dtype)
    resolved_device = resolve_device(device)
    tasks = _check_checkpoints(
        checkpoints, prompts, max_new_tokens=max_new_tokens, trust_remote_code=trust_remote_code
    )
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    measuring = MeasureSettings(
        group_size=group_size,
        ks=all_ks,
        success_threshold=success_threshold,
        tau_h=tau_h,
        temperature=temperature,
        seed=seed,
    )
    requests = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
    screened: list[CheckpointScreening] = []
    with _quiet_loading(), _progress(progress) as bars:
        rows = [bars.add_task(task.source.name, total=len(requests)) for task in tasks]
        for task, row in zip(tasks, rows, strict=True):
            started = time.perf_counter()
            loaded = load_checkpoint(
                task.source,
                dtype=dtype,
                device=resolved_device,
                trust_remote_code=trust_remote_code,
            )
            rollouts: list[Rollout] = []
            for batch in generate_rollouts(loaded, task.encoded, requests, sampling):
                rollouts.extend(batch)
                bars.advance(row, len(batch))
            del loaded
            gc.collect()
            rewards = None if function is None else score_rollouts(function, prompts, rollouts)
            screened.append(
                measure_checkpoint(
                    rollouts,
                    rewards,
                    name=task.source.name,
                    path=task.source.given,
                    settings=measuring,
                    runtime_s=time.perf_counter() - started,
                )
            )
            if folder is not None:
                write_rollouts(folder, task.source.name, rollouts, rewards)

    settings = {
        **asdict(sampling),
        "num_samples": num_samples,
        "group_size": group_size,
        "ks": list(all_ks),
        "tau_h": tau_h,
        "entropy_temperature": 1.0,
        "reward": None if reward is None else reward_name(reward),
        "success_threshold": success_threshold,
        "confidence": 0.95,
        "prompts": {"source": prompts.source, "count": len(prompts), "digest": prompts.digest},
        "dtype": str(dtype).removeprefix("torch."),
        "device": resolved_device.type,
        "versions": {
            "entropyfloor": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    report = ScreeningReport(tuple(screened), settings)
    if folder is not None:
        write_report(report, folder)
    return report


def _check_samples(
    num_samples: int, group_size: int, ks: Sequence[int] | None, *, scored: bool
) -> tuple[int, ...]:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}")
    if not scored:
        return ()
    if num_samples < group_size:
        raise ValueError(
            f"{num_samples} samples per prompt cannot show how often a group of {group_size} "
            f"agrees; draw at least {group_size} samples, or set group_size to what RL will use"
        )
    chosen = default_ks(num_samples) if ks is None else tuple(sorted(set(ks)))
    wrong = [k for k in chosen if not 1 <= k <= num_samples]
    if wrong:
        raise ValueError(
            f"pass@k needs 1 <= k <= num_samples ({num_samples}); got k = "
            f"{', '.join(map(str, wrong))}"
        )
    return chosen


def _check_checkpoints(
    checkpoints: Sequence[str | Path],
    prompts: PromptSet,
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> list[_Task]:
    """Everything that a checkpoint can get wrong before its weights are read."""
    tasks = []
    for source in find_checkpoints(checkpoints, trust_remote_code=trust_remote_code):
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        encoded = encode_prompts(prompts, tokenizer, where=source.given)
        check_lengths(
            encoded,
            context_length=context_length(source, trust_remote_code=trust_remote_code),
            max_new_tokens=max_new_tokens,
            where=source.given,
        )
        tasks.append(_Task(source, encoded))
    return tasks


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence transformers' own bars, which would be drawn across ours."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _progress(enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rollouts"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )
