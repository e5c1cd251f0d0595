"""The peak of a training run over its checkpoints, with the step it was reached at.

RL is judged by its best checkpoint as much as by its last: the rank-inversion paper reports the
peak of pass@10 over GRPO (arXiv 2606.18487). Checkpoints ``checkpoint-STEP`` of one folder are one
run; others have no step and no peak. The largest of several noisy numbers lies above its true value
on average; the interval is that of the checkpoint by itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Peak:
    """The highest value of one measure over one run."""

    run: str  # folder of the run
    measure: str  # pass_at_1, pass_at_8, ..
    value: float  # the highest; the earliest checkpoint wins a tie
    step: int  # optimizer step of that checkpoint
    checkpoint: str  # its name in the report
    low: float | None  # lower end of its 95 % interval; None if it has none
    high: float | None  # upper end
    last_value: float  # the measure at the run's last checkpoint
    last_step: int  # its step
    num_checkpoints: int  # over how many the peak was taken


def find_peaks(checkpoints: Sequence[Any]) -> tuple[Peak, ...]:
    """Peaks of pass@k for every k, of every run of two scored checkpoints or more.

    Args:
        checkpoints: of a ``ScreeningReport``, whose module imports this one.

    """
    runs: dict[str, list[tuple[int, Any]]] = {}
    for checkpoint in checkpoints:
        path = Path(checkpoint.path)
        if (match := _STEP.fullmatch(path.name)) and checkpoint.has_reward:
            runs.setdefault(str(path.parent), []).append((int(match[1]), checkpoint))
    peaks = []
    for run, checkpoints in runs.items():
        steps = sorted(checkpoints, key=lambda pair: pair[0])
        if len(steps) < 2:
            continue
        ks = sorted(set.intersection(*(set(c.pass_at_k) for _, c in steps)))
        peaks += [_peak(run, k, steps) for k in ks]
    return tuple(peaks)


def peak_words(peaks: Sequence[Peak]) -> list[str]:
    """One sentence per run."""
    sentences = []
    for run in dict.fromkeys(peak.run for peak in peaks):
        of_run = [peak for peak in peaks if peak.run == run]
        shown = of_run if len(of_run) < 3 else [of_run[0], of_run[-1]]
        parts = [
            f"{peak.measure.replace('pass_at_', 'pass@')} {peak.value:.3f} at step {peak.step}"
            + ("" if peak.step == peak.last_step else f" ({peak.last_value:.3f} at the last)")
            for peak in shown
        ]
        first = of_run[0]
        sentences.append(
            f"Peak of {run} over {first.num_checkpoints} checkpoints up to step "
            f"{first.last_step}: {', '.join(parts)}"
        )
    return sentences


def _peak(run: str, k: int, steps: Sequence[tuple[int, Any]]) -> Peak:
    step, best = max(steps, key=lambda pair: (pair[1].pass_at_k[k], -pair[0]))
    last_step, last = steps[-1]
    measure = f"pass_at_{k}"
    interval = best.intervals.get(measure)
    return Peak(
        run=run,
        measure=measure,
        value=best.pass_at_k[k],
        step=step,
        checkpoint=best.name,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        last_value=last.pass_at_k[k],
        last_step=last_step,
        num_checkpoints=len(steps),
    )
