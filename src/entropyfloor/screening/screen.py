"""``screen``: find the checkpoints that reinforcement learning can still improve.

Rollouts of every checkpoint on one prompt set, measured and judged. Everything that can be checked
without a model is checked first: arguments, prompts, reward columns, every checkpoint's files,
tokenizer and context.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from entropyfloor.models.checkpoint_sources import CheckpointSource, check_checkpoint
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.draw import (
    ERROR_RATE,
    FEWEST_PROMPTS,
    Drawing,
    draw_rollouts,
    progress_bars,
    quiet_loading,
)
from entropyfloor.rollouts.engines import Task, ready_to_draw, versions
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.overlap import find_overlap
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet, load_prompts, stream_rows
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name, reward_name
from entropyfloor.rollouts.rollout_store import (
    RolloutStore,
    checkpoint_digest,
    open_folder,
    what_determines,
)
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import (
    TokenSums,
    held_out_loss,
    kl_to_base,
    rollout_completions,
)
from entropyfloor.screening.conclude import check_base, conclude, measured_ks, name_of
from entropyfloor.screening.measure import measure_checkpoint
from entropyfloor.screening.options import Judging
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.stats.intervals import CONFIDENCE


def screen(
    checkpoints: Sequence[str | Path],
    prompts: PromptSet,
    reward: RewardFunction | str | None = None,
    *,
    sampling: Sampling = Sampling(),
    judging: Judging = Judging(),
    loading: Loading = Loading(),
    output: Output = Output(),
    processes: Processes | None = None,
) -> ScreeningReport:
    """Screen checkpoints before RL.

    Args:
        checkpoints: model or PEFT adapter directories, hub ids, or trainer output folders.
        prompts: see ``entropyfloor.rollouts.prompts.load_prompts``.
        reward: a function in trl's signature, or a name; without one only entropy is judged.
        sampling: how rollouts are drawn; with a reward, at least ``group_size`` per prompt.
        judging: what is computed from them.
        loading: how checkpoints are loaded.
        output: ``output_dir`` gets screening.json, .md, .html and .png, and the rollouts as JSONL,
            batch by batch. Screening into it again goes on where a killed run was.
        processes: from ``join_processes()`` where several processes, started by
            ``accelerate launch``, screen together; the numbers are those of one. The main one
            writes, and all return the report.

    Raises:
        ValueError: an argument, prompt, reward or checkpoint that cannot work; the message says
            how to mend it.
        FileNotFoundError: a checkpoint that does not exist.

    """
    all_ks = measured_ks(sampling.num_samples, judging, scored=reward is not None)
    judging = replace(judging, ks=list(all_ks))
    if judging.until_decided and len(prompts) < FEWEST_PROMPTS:
        raise ValueError(
            f"until_decided looks at {FEWEST_PROMPTS} prompts or more; {prompts.source} has "
            f"{len(prompts)}: give more prompts, or draw everything"
        )
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    processes = processes or Processes()
    held_out = find_held_out(prompts, judging.held_out)
    ready = ready_to_draw(
        checkpoints,
        prompts,
        function,
        held_out=held_out,
        sampling=sampling,
        loading=loading,
        processes=processes,
    )
    base_source = None
    if judging.base is not None:
        base_source = check_checkpoint(judging.base, trust_remote_code=loading.trust_remote_code)
    reference = Reference(held_out, base_source, ready.load, processes)
    tasks = ready.tasks
    names = [(task.source.name, task.source.path) for task in tasks]
    compare_to = name_of(judging.compare_to, names)
    check_base(judging, len(names))
    trained_on = None if judging.trained_on is None else str(judging.trained_on)
    overlap = None
    if trained_on is not None and processes.main:
        overlap = find_overlap(partial(stream_rows, trained_on), prompts.user_texts)
    folder = None if output.output_dir is None else output.folder
    settings = {
        **asdict(sampling),
        "group_size": judging.group_size,
        "ks": list(all_ks),
        "tau_h": judging.tau_h,
        "entropy_temperature": 1.0,
        "reward": None if reward is None else reward_name(reward),
        "success_threshold": judging.success_threshold,
        "confidence": CONFIDENCE,
        "until_decided": ERROR_RATE if judging.until_decided else None,
        "compare_to": compare_to,
        "trained_on": None
        if overlap is None
        else {"source": trained_on, **overlap.counts(), "words": overlap.words()},
        "min_pass_at": judging.min_pass_at,
        "min_coverage": judging.min_coverage,
        "max_degenerate": judging.max_degenerate,
        "prompts": {
            "source": prompts.source,
            "count": len(prompts),
            "digest": prompts.digest,
            "example": tasks[0].example,
        },
        **reference.describe(),
        **{name: ready.settings[name] for name in ("dtype", "device", "engine")},
        **{name: ready.settings[name] for name in ("engine_args",) if name in ready.settings},
        "versions": versions(),
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
                "checkpoints": [list(pair) for pair in names],
            },
        )

    greedy = judging.greedy and function is not None
    total = len(prompts) * (sampling.num_samples + greedy)
    screened: list[CheckpointScreening] = []
    with quiet_loading(), progress_bars(enabled=output.progress and processes.main) as bars:
        rows = [bars.add_task(task.source.name, total=total) for task in tasks]
        for task, row in zip(tasks, rows, strict=True):
            started = time.perf_counter()
            drawing = Drawing(
                prompts=prompts,
                encoded=task.encoded,
                reward=function,
                sampling=sampling,
                greedy=greedy,
                tau_h=judging.tau_h if judging.until_decided else None,
                processes=processes,
            )
            store = RolloutStore(folder, task.source.name, processes)
            checkpoint = cache(partial(ready.load, task.source))
            sequential = draw_rollouts(
                drawing,
                store,
                load=partial(ready.engine, task, checkpoint),
                advance=partial(bars.advance, row),
            )
            chosen = drawing.chosen(store, sequential)
            rollouts = [store.rollouts[index] for index in chosen]
            sums = reference.sums(task, checkpoint, rollouts, store)
            del checkpoint
            gc.collect()
            if ready.device.type == "cuda":
                torch.cuda.empty_cache()  # the next checkpoint may be loaded by another process
            if not processes.main:
                continue
            rewards = None if function is None else [store.rewards[i] for i in chosen]
            measured = measure_checkpoint(
                rollouts,
                rewards,
                sampling,
                judging,
                source=(task.source.name, task.source.path),
                prompt_texts=texts,
                teacher_forced=sums,
                sequential=sequential,
            )
            screened.append(replace(measured, runtime_s=time.perf_counter() - started))

    report: ScreeningReport | None = None
    if processes.main:
        report = conclude(
            screened,
            settings,
            prompt_texts=texts,
            compare_to=compare_to,
            gates=judging.gates,
        )
        if folder is not None:
            from entropyfloor.screening.page import write_report

            write_report(report, folder)
    report = processes.from_main(report)
    assert report is not None
    return report


@dataclass
class Reference:
    """Held-out completions and base, the same for every checkpoint."""

    held_out: PromptSet | None  # rows with prompt and completion; None for no held-out loss
    base: CheckpointSource | None  # of the KL; None for none
    load: Callable[[CheckpointSource], LoadedCheckpoint]  # loads the base; it stays in memory
    processes: Processes = field(default_factory=Processes)  # share the work
    _base: LoadedCheckpoint | None = field(default=None, init=False)

    def sums(
        self,
        task: Task,
        checkpoint: Callable[[], LoadedCheckpoint],
        rollouts: Sequence[Rollout],
        store: RolloutStore,
    ) -> dict[str, TokenSums]:
        """Held-out loss and KLs of one checkpoint, from the store if they are there.

        Args:
            task: the checkpoint's, with its held-out completions.
            checkpoint: gives it, loaded.
            rollouts: those that are measured, on the main process; greedy ones do not count.
            store: keeps the result.

        """
        if self.held_out is None and self.base is None:
            return {}
        processes = self.processes
        ordered = sorted(rollouts, key=lambda r: (r.prompt_index, r.sample_index))
        completions = rollout_completions((r for r in ordered if not r.greedy), task.encoded)
        key = self._key(len(completions))
        known = processes.from_main(store.read_sums(key) if processes.main else None)
        if known is not None:
            return known
        loaded = checkpoint()
        sums: dict[str, TokenSums] = {}
        prompts = 0 if self.held_out is None else len(self.held_out)
        if self.held_out is not None:
            sums["held_out_loss"] = held_out_loss(
                loaded, task.held_out, num_prompts=prompts, processes=processes
            )
        if self.base is not None:
            self._base = self._base or self.load(self.base)
            sums["kl_to_base"] = kl_to_base(
                loaded,
                self._base,
                processes.from_main(completions),
                num_prompts=len(task.encoded),
                processes=processes,
            )
            if self.held_out is not None:
                sums["held_out_kl_to_base"] = kl_to_base(
                    loaded, self._base, task.held_out, num_prompts=prompts, processes=processes
                )
        store.write_sums(sums, key)
        return sums

    def describe(self) -> dict[str, Any]:
        """What the report's settings say about it."""
        rows = self.held_out
        return {
            "base": None if self.base is None else self.base.path,
            "held_out": None
            if rows is None
            else {"source": rows.source, "count": len(rows), "digest": rows.full_digest},
        }

    def _key(self, num_rollouts: int) -> list[Any]:
        held_out = None if self.held_out is None else self.held_out.full_digest
        base = None if self.base is None else checkpoint_digest(self.base)
        return [held_out, base, num_rollouts]


def find_held_out(prompts: PromptSet, held_out: PromptSet | str | None) -> PromptSet | None:
    """Choose the rows for the held-out loss: those given, or prompts that all have a completion."""
    if isinstance(held_out, str):
        return load_prompts(held_out)
    if held_out is None and all(row.get("completion") for row in prompts.rows):
        return prompts
    return held_out
