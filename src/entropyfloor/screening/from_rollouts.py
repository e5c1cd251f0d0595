"""A report from the rollouts that an earlier screening left on disk, without a model.

Scores are taken as they are; thresholds, group size and ks may be others than they were.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.draw import Drawing, replay
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.preparation import check_samples
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rollout_store import RolloutStore, read_folder
from entropyfloor.screening.measure import example_rollouts, measure_checkpoint
from entropyfloor.screening.options import Judging
from entropyfloor.screening.recommend import recommend
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.stats.group_sequential import SequentialRecord


def screen_from_rollouts(
    folder: str | Path,
    *,
    tau_h: float | None = None,
    group_size: int | None = None,
    ks: Sequence[int] | None = None,
    success_threshold: float | None = None,
) -> ScreeningReport:
    """Compute a report again; what is left out is as it was.

    Args:
        folder: a screening's ``output_dir``, also of one that was killed: its checkpoints that have
            rollouts are reported.
        tau_h: nats.
        group_size: rollouts per prompt in RL.
        ks: pass@k to report.
        success_threshold: a rollout passes if its reward is at least this.

    Raises:
        FileNotFoundError: no such folder, or none of a screening.
        ValueError: no rollouts in it, or settings that they cannot answer.

    """
    context = read_folder(Path(folder))["context"]
    before = context["settings"]
    settings = {
        **before,
        "tau_h": before["tau_h"] if tau_h is None else tau_h,
        "group_size": before["group_size"] if group_size is None else group_size,
        "success_threshold": (
            before["success_threshold"] if success_threshold is None else success_threshold
        ),
    }
    scored = settings["reward"] is not None
    kept = before["ks"] if ks is None else ks
    settings["ks"] = list(
        check_samples(settings["num_samples"], settings["group_size"], kept, scored=scored)
    )
    sampling = Sampling(**{part.name: settings[part.name] for part in fields(Sampling)})
    judging = Judging(
        settings["group_size"], settings["tau_h"], settings["ks"], settings["success_threshold"]
    )
    screened = []
    for name, path in context["checkpoints"]:
        store = RolloutStore(Path(folder), name, repair=False)
        sequential, chosen = _choose(store, sampling, settings, context["prompt_texts"])
        if not chosen:
            continue
        rollouts = [store.rollouts[index] for index in chosen]
        rewards = [store.rewards[index] for index in chosen] if scored else None
        measured = measure_checkpoint(
            rollouts,
            rewards,
            sampling,
            judging,
            name=name,
            path=path,
            teacher_forced=store.read_sums(),
            sequential=sequential,
        )
        examples = example_rollouts(rollouts, rewards, context["prompt_texts"])
        screened.append(replace(measured, examples=examples))
    if not screened:
        raise ValueError(f"{folder} holds no prompt with all its rollouts; let screen finish first")
    return ScreeningReport(tuple(screened), settings, recommend(screened))


def _choose(
    store: RolloutStore, sampling: Sampling, settings: dict[str, Any], prompt_texts: Sequence[str]
) -> tuple[SequentialRecord | None, list[int]]:
    """What was decided look by look, if it was drawn so, and which rollouts to measure."""
    if settings.get("until_decided") is not None:
        drawing = Drawing(
            prompts=PromptSet(tuple({"prompt": text} for text in prompt_texts)),
            encoded=(),
            reward=None,
            sampling=sampling,
            greedy=any(rollout.greedy for rollout in store.rollouts),
            tau_h=settings["tau_h"],
        )
        if (sequential := replay(drawing, store)) is not None:
            return sequential, drawing.chosen(store, sequential)
    # A prompt that a kill left without all its rollouts has no whole group: leave it out.
    counts: dict[int, int] = {}
    for rollout in store.rollouts:
        if not rollout.greedy and rollout.sample_index < sampling.num_samples:
            counts[rollout.prompt_index] = counts.get(rollout.prompt_index, 0) + 1
    whole = {prompt for prompt, n in counts.items() if n == sampling.num_samples}
    return None, [
        index
        for index, r in enumerate(store.rollouts)
        if r.prompt_index in whole and r.sample_index < sampling.num_samples
    ]
