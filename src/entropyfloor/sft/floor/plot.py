"""A training run under an entropy floor: entropy beside its target, and the weight that held it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entropyfloor.render.figure import Chart, draw_course, series
from entropyfloor.render.palette import LIGHT
from entropyfloor.sft.floor.probe import ProbeResult


def write_floor_plot(
    log: Sequence[Mapping[str, float]],
    probes: Sequence[ProbeResult],
    floor: float,
    path: str | Path,
) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Args:
        log: a Trainer's ``log_history``.
        probes: of the run. Where they measured held-out rows, a third panel shows the calibration
            gap, entropy minus loss: below 0 the model is surer of itself than it has a right to be.
        floor: nats, at the end of the run.
        path: of the file.

    """
    held_out = [probe for probe in probes if probe.held_out_loss is not None]
    rows = 3 if held_out else 2
    chart = Chart(620, 620 if held_out else 470)
    panels = chart.panels(rows, 1, sharex=True, height_ratios=[2, 1, 1][:rows])
    entropy, weight = panels[:2]
    rollouts = [(probe.step, probe.entropy) for probe in probes if probe.entropy is not None]
    more = []
    if rollouts:
        points = entropy.plot(*zip(*rollouts, strict=True), **series(1) | {"linestyle": "none"})
        more.append((points[0], "rollouts (probe)"))
    line = entropy.axhline(floor, color=LIGHT["soft"], linestyle="--", linewidth=1)
    more.append((line, f"floor {floor:.3g}"))
    for name, colour, words in (
        ("held_out_entropy", "s3", "held-out entropy"),
        ("held_out_loss", "s4", "held-out loss"),
    ):
        course = [(probe.step, getattr(probe, name)) for probe in held_out]
        if course:
            (held,) = entropy.plot(*zip(*course, strict=True), color=LIGHT[colour], linewidth=1.5)
            more.append((held, words))
    draw_course(
        chart,
        entropy,
        log,
        {"floor_entropy": ("teacher-forced, smoothed", "s0"), "floor_target": ("its target", "s5")},
        more=more,
    )
    entropy.set(yscale="log", ylabel="entropy (nats)")
    entropy.yaxis.set_major_formatter("{x:g}")
    entropy.yaxis.set_minor_formatter("{x:g}")
    draw_course(chart, weight, log, {"floor_weight": ("", "s2")})
    weight.set(ylabel="weight of the term")
    weight.set_ylim(bottom=0)
    if held_out:
        gaps = [{"step": probe.step, "gap": probe.calibration_gap} for probe in held_out]
        draw_course(chart, panels[2], gaps, {"gap": ("", "s3")})
        panels[2].axhline(0, color=LIGHT["soft"], linestyle="--", linewidth=1)
        panels[2].set(ylabel="calibration gap")
    panels[-1].set(xlabel="optimiser step")
    return chart.save(path)
