"""A training run under an entropy floor: entropy beside its target, and the weight that held it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entropyfloor.render.figure import Chart, draw_course, series
from entropyfloor.render.palette import LIGHT


def write_floor_plot(
    log: Sequence[Mapping[str, float]],
    probes: Sequence[tuple[int, float]],
    floor: float,
    path: str | Path,
) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Args:
        log: a Trainer's ``log_history``.
        probes: (step, entropy of rollouts in nats).
        floor: nats.
        path: of the file.

    """
    chart = Chart(620, 470)
    entropy, weight = chart.panels(2, 1, sharex=True, height_ratios=[2, 1])
    points = entropy.plot(*zip(*probes, strict=True), **series(1) | {"linestyle": "none"})
    line = entropy.axhline(floor, color=LIGHT["soft"], linestyle="--", linewidth=1)
    draw_course(
        chart,
        entropy,
        log,
        {"floor_entropy": ("teacher-forced, smoothed", "s0"), "floor_target": ("its target", "s5")},
        more=[(points[0], "rollouts (probe)"), (line, f"floor {floor:g}")],
    )
    entropy.set(yscale="log", ylabel="entropy (nats)")
    entropy.yaxis.set_major_formatter("{x:g}")
    entropy.yaxis.set_minor_formatter("{x:g}")
    draw_course(chart, weight, log, {"floor_weight": ("", "s2")})
    weight.set(ylabel="weight of the term", xlabel="optimiser step")
    weight.set_ylim(bottom=0)
    return chart.save(path)
