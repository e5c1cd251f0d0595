"""A report from the rollouts that an earlier screening left on disk, without a model.

Scores are taken as they are; thresholds, group size and ks may be others than they were.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rollout_store import RolloutStore, read_folder
from entropyfloor.rollouts.rollouts import SamplingSettings
from entropyfloor.screening.draw import Drawing, replay
from entropyfloor.screening.measure import MeasureSettings, measure_checkpoint
from entropyfloor.screening.preparation import check_samples
from entropyfloor.screening.recommend import recommend
from entropyfloor.screening.records import SequentialRecord
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.verdict import check_tau_h
from entropyfloor.stats.groups import check_success_threshold, p_star


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
    check_tau_h(settings["tau_h"])
    check_success_threshold(settings["success_threshold"])
    p_star(settings["group_size"])
    scored = settings["reward"] is not None
    kept = before["ks"] if ks is None else ks
    settings["ks"] = list(
        check_samples(settings["num_samples"], settings["group_size"], kept, scored=scored)
    )
    measuring = MeasureSettings(
        group_size=settings["group_size"],
        ks=tuple(settings["ks"]),
        success_threshold=settings["success_threshold"],
        tau_h=settings["tau_h"],
        temperature=settings["temperature"],
        seed=settings["seed"],
    )
    screened = []
    for name, given in context["checkpoints"]:
        store = RolloutStore(Path(folder), name, repair=False)
        sequential, chosen = _choose(store, settings, context["prompt_texts"])
        if not chosen:
            continue
        screened.append(
            measure_checkpoint(
                [store.rollouts[index] for index in chosen],
                [store.rewards[index] for index in chosen] if scored else None,
                name=name,
                path=given,
                settings=measuring,
                teacher_forced=store.read_sums(),
                sequential=sequential,
                prompt_texts=context["prompt_texts"],
            )
        )
    if not screened:
        raise ValueError(f"{folder} holds no prompt with all its rollouts; let screen finish first")
    return ScreeningReport(tuple(screened), settings, recommend(screened))


def _choose(
    store: RolloutStore, settings: dict[str, Any], prompt_texts: Sequence[str]
) -> tuple[SequentialRecord | None, list[int]]:
    """What was decided look by look, if it was drawn so, and which rollouts to measure."""
    if settings.get("until_decided") is not None:
        known = [part.name for part in fields(SamplingSettings)]
        drawing = Drawing(
            prompts=PromptSet(tuple({"prompt": text} for text in prompt_texts)),
            encoded=(),
            reward=None,
            sampling=SamplingSettings(**{name: settings[name] for name in known}),
            num_samples=settings["num_samples"],
            greedy=any(rollout.greedy for rollout in store.rollouts),
            tau_h=settings["tau_h"],
        )
        if (sequential := replay(drawing, store)) is not None:
            return sequential, drawing.chosen(store, sequential)
    # A prompt that a kill left without all its rollouts has no whole group: leave it out.
    counts: dict[int, int] = {}
    for rollout in store.rollouts:
        if not rollout.greedy and rollout.sample_index < settings["num_samples"]:
            counts[rollout.prompt_index] = counts.get(rollout.prompt_index, 0) + 1
    whole = {prompt for prompt, n in counts.items() if n == settings["num_samples"]}
    return None, [
        index
        for index, r in enumerate(store.rollouts)
        if r.prompt_index in whole and r.sample_index < settings["num_samples"]
    ]
