"""``screen``: find the checkpoints that reinforcement learning can still improve.

Rollouts of every checkpoint on one prompt set, measured and judged. Everything that can be checked
without a model is checked first: arguments, prompts, reward columns, every checkpoint's files,
tokenizer and context.
"""

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
import transformers

from entropyfloor import __version__
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import (
    LoadedCheckpoint,
    dtype_record,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
)
from entropyfloor.rollouts.engines import Engine, TransformersEngine, choose_engine
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.progress import progress_bars, quiet_loading
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.references import check_references
from entropyfloor.rollouts.rewards import (
    RewardFunction,
    reward_by_name,
    reward_name,
)
from entropyfloor.rollouts.rollout_store import (
    RolloutStore,
    checkpoint_digest,
    open_folder,
    what_determines,
)
from entropyfloor.rollouts.rollouts import SamplingSettings
from entropyfloor.rollouts.teacher_forced import check_held_out
from entropyfloor.screening.draw import ERROR_RATE, FEWEST_PROMPTS, Drawing, draw_rollouts
from entropyfloor.screening.measure import MeasureSettings, measure_checkpoint
from entropyfloor.screening.page import write_report
from entropyfloor.screening.preparation import Task, check_samples, prepare
from entropyfloor.screening.recommend import recommend
from entropyfloor.screening.reference import Reference, find_held_out
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.screening.verdict import TAU_H, check_tau_h
from entropyfloor.stats.groups import check_success_threshold, p_star


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
    greedy: bool = True,
    until_decided: bool = False,
    held_out: PromptSet | None = None,
    base: str | Path | None = None,
    output_dir: str | Path | None = None,
    progress: bool = True,
    engine: str = "transformers",
    processes: Processes | None = None,
) -> ScreeningReport:
    """Screen checkpoints before RL.

    Args:
        checkpoints: model or PEFT adapter directories, hub ids, or trainer output folders.
        prompts: see ``entropyfloor.rollouts.prompts.load_prompts``.
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
        dtype: ``"auto"`` (the checkpoint's; on a CPU half precision is computed in float32, which
            holds it exactly), float32, bfloat16 or float16.
        device: CUDA if there is one, else CPU, when left out.
        trust_remote_code: run model code that travels with a checkpoint.
        greedy: with a reward, also draw one greedy rollout per prompt, for greedy pass@1.
        until_decided: look at the entropy while drawing, and stop a checkpoint once it is decided
            to lie above or below ``tau_h``; see ``entropyfloor.screening.draw``.
        held_out: rows with prompt and ``completion``, for the held-out loss; the prompts themselves
            if all of them have one.
        base: model that the KL is measured to; it stays in memory beside each checkpoint.
        output_dir: if given, gets screening.json, .md, .html and .png, and the rollouts as JSONL,
            batch by batch. Screening into it again goes on where a killed run was.
        progress: show a progress bar on standard error.
        engine: what draws: ``transformers``, ``vllm``, or ``auto``, see
            ``entropyfloor.rollouts.engines``.
        processes: from ``join_processes()`` where several processes, started by
            ``accelerate launch``, screen together; the numbers are those of one. The main one
            writes, and all return the report.

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
    check_success_threshold(success_threshold)
    p_star(group_size)  # raises for an impossible group size
    all_ks = check_samples(num_samples, group_size, ks, scored=reward is not None)
    if until_decided and len(prompts) < FEWEST_PROMPTS:
        raise ValueError(
            f"until_decided looks at {FEWEST_PROMPTS} prompts or more; {prompts.source} has "
            f"{len(prompts)}: give more prompts, or draw everything"
        )
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    if function is not None:
        check_references(function, prompts)
    resolve_dtype(dtype)
    processes = processes or Processes()
    resolved_device = processes.own(resolve_device(device))
    held_out = find_held_out(prompts, held_out)
    if held_out is not None:
        check_held_out(held_out)
    load = partial(
        load_checkpoint, dtype=dtype, device=resolved_device, trust_remote_code=trust_remote_code
    )
    base_source = None
    if base is not None:
        base_source = check_checkpoint(base, trust_remote_code=trust_remote_code)
    reference = Reference(held_out, base_source, load, processes)
    tasks = prepare(
        checkpoints,
        prompts,
        held_out,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    chosen_engine = choose_engine(
        engine,
        sources=[task.source for task in tasks],
        device=resolved_device,
        processes=processes,
    )
    folder = None if output_dir is None else Path(output_dir)
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
        "until_decided": ERROR_RATE if until_decided else None,
        "prompts": {
            "source": prompts.source,
            "count": len(prompts),
            "digest": prompts.digest,
            "example": tasks[0].example,
        },
        **reference.describe(),
        "dtype": dtype_record(dtype, resolved_device),
        "device": resolved_device.type,
        "engine": chosen_engine,
        "versions": {
            "entropyfloor": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    texts = prompts.texts
    if folder is not None and processes.main:
        open_folder(
            folder,
            determines={
                **what_determines(sampling, prompts, function, settings),
                "checkpoints": {t.source.name: checkpoint_digest(t.source) for t in tasks},
            },
            context={
                "settings": settings,
                "prompt_texts": texts,
                "checkpoints": [[t.source.name, t.source.given] for t in tasks],
            },
        )

    measuring = MeasureSettings(
        group_size=group_size,
        ks=all_ks,
        success_threshold=success_threshold,
        tau_h=tau_h,
        temperature=temperature,
        seed=seed,
    )
    total = len(prompts) * (num_samples + (1 if greedy and function is not None else 0))
    screened: list[CheckpointScreening] = []
    with quiet_loading(), progress_bars(enabled=progress and processes.main) as bars:
        rows = [bars.add_task(task.source.name, total=total) for task in tasks]
        for task, row in zip(tasks, rows, strict=True):
            started = time.perf_counter()
            drawing = Drawing(
                prompts=prompts,
                encoded=task.encoded,
                reward=function,
                sampling=sampling,
                num_samples=num_samples,
                greedy=greedy and function is not None,
                tau_h=tau_h if until_decided else None,
                processes=processes,
            )
            store = RolloutStore(folder, task.source.name, processes)
            checkpoint = cache(partial(load, task.source))
            sequential = draw_rollouts(
                drawing,
                store,
                load=partial(
                    ready_engine,
                    chosen_engine,
                    task,
                    checkpoint,
                    max_new_tokens=max_new_tokens,
                    trust_remote_code=trust_remote_code,
                ),
                advance=partial(bars.advance, row),
            )
            chosen = drawing.chosen(store, sequential)
            rollouts = [store.rollouts[index] for index in chosen]
            sums = reference.sums(task, checkpoint, rollouts, store)
            del checkpoint
            gc.collect()
            if resolved_device.type == "cuda":
                torch.cuda.empty_cache()  # the next checkpoint may be loaded by another process
            if not processes.main:
                continue
            screened.append(
                measure_checkpoint(
                    rollouts,
                    None if function is None else [store.rewards[i] for i in chosen],
                    name=task.source.name,
                    path=task.source.given,
                    settings=measuring,
                    runtime_s=time.perf_counter() - started,
                    teacher_forced=sums,
                    sequential=sequential,
                    prompt_texts=texts,
                )
            )

    report: ScreeningReport | None = None
    if processes.main:
        report = ScreeningReport(tuple(screened), settings, recommend(screened))
        if folder is not None:
            write_report(report, folder)
    report = processes.from_main(report)
    assert report is not None
    return report


def ready_engine(
    name: str,
    task: Task,
    checkpoint: Callable[[], LoadedCheckpoint],
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> Engine:
    """Make the engine that :func:`choose_engine` chose ready to draw from one checkpoint."""
    if name == "transformers":
        return TransformersEngine(checkpoint())
    from entropyfloor.rollouts.vllm_engine import VLLMEngine

    return VLLMEngine(
        task.source,
        checkpoint(),
        context_length=max(map(len, task.encoded)) + max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
