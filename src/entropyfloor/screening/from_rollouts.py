"""A report from the rollouts that an earlier screening left on disk, without a model.

Scores are taken as they are; thresholds, group size and ks may be others than they were.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.draw import Drawing, replay
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rollout_store import RolloutStore, read_folder
from entropyfloor.screening.conclude import check_base, conclude, measured_ks, name_of
from entropyfloor.screening.measure import measure_checkpoint
from entropyfloor.screening.options import Judging
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.stats.group_sequential import SequentialRecord

_JUDGED = (
    *("group_size", "tau_h", "ks", "success_threshold"),
    *("min_pass_at", "min_coverage", "max_degenerate"),
)


def screen_from_rollouts(folder: str | Path, **told: Any) -> ScreeningReport:
    """Compute a report again; what is left out is as it was.

    Args:
        folder: a screening's ``output_dir``, also of one that was killed: its checkpoints that have
            rollouts are reported.
        **told: fields of `Judging` that need no drawing, in place of what they were: ``tau_h``,
            ``group_size``, ``ks``, ``success_threshold``, ``compare_to``, and the gates.

    Raises:
        FileNotFoundError: no such folder, or none of a screening.
        ValueError: no rollouts in it, or settings that they cannot answer.

    """
    if unknown := sorted(set(told) - {*_JUDGED, "compare_to"}):
        raise ValueError(
            f"{', '.join(unknown)} cannot be changed without drawing; what can is "
            f"{', '.join((*_JUDGED, 'compare_to'))}"
        )
    context = read_folder(Path(folder))["context"]
    before = context["settings"]
    settings = {**before, **{name: value for name, value in told.items() if value is not None}}
    scored = settings["reward"] is not None
    sampling = Sampling(**{part.name: settings[part.name] for part in fields(Sampling)})
    judging = Judging(**{name: settings[name] for name in _JUDGED if name in settings})
    settings["ks"] = list(measured_ks(sampling.num_samples, judging, scored=scored))
    judging = replace(judging, ks=settings["ks"])
    screened = []
    for name, path in context["checkpoints"]:
        store = RolloutStore(Path(folder), name, repair=False)
        sequential, chosen = _choose(store, sampling, settings, context["prompt_texts"])
        if not chosen:
            continue
        screened.append(
            measure_checkpoint(
                [store.rollouts[index] for index in chosen],
                [store.rewards[index] for index in chosen] if scored else None,
                sampling,
                judging,
                source=(name, path),
                prompt_texts=context["prompt_texts"],
                teacher_forced=store.read_sums(),
                sequential=sequential,
            )
        )
    if not screened:
        raise ValueError(f"{folder} holds no prompt with all its rollouts; let screen finish first")
    check_base(judging, len(screened))
    names = [(checkpoint.name, checkpoint.path) for checkpoint in screened]
    if told.get("compare_to") is None and settings.get("compare_to") not in dict(names):
        settings["compare_to"] = None  # its rollouts were not drawn before a kill
    settings["compare_to"] = name_of(settings["compare_to"], names)
    return conclude(
        screened,
        settings,
        prompt_texts=context["prompt_texts"],
        compare_to=settings["compare_to"],
        gates=judging.gates,
    )


def read_screening(folder: str | Path) -> tuple[ScreeningReport, list[str]]:
    """The report of a screening's ``output_dir``, and the texts of its prompts.

    Where the written one is of other settings than the rollouts, of an earlier version, or not
    there after a kill, it is computed from the rollouts.

    Raises:
        FileNotFoundError: no such folder, or none of a screening.
        ValueError: no rollouts in it.

    """
    context = read_folder(Path(folder))["context"]
    file, names = Path(folder) / "screening.json", [name for name, _ in context["checkpoints"]]
    if file.is_file():
        report = ScreeningReport.from_dict(json.loads(file.read_text(encoding="utf-8")))
        whole = all(checkpoint.prompt_results is not None for checkpoint in report.checkpoints)
        written = [checkpoint.name for checkpoint in report.checkpoints]
        if whole and written == names and report.settings == context["settings"]:
            return report, context["prompt_texts"]
    return screen_from_rollouts(folder), context["prompt_texts"]


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
