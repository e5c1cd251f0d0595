"""A watched GRPO run: entropy, reward and degenerate groups by optimiser step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.render.figure import Chart, draw_course
from entropyfloor.render.palette import LIGHT
from entropyfloor.render.text import plain


def write_monitor_plot(log: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Args:
        log: the records of ``entropyfloor.rl.monitor_memory.read_log``.
        path: of the file.

    """
    starts = [record for record in log if record["event"] == "start"]
    verdicts = [record for record in log if record["event"] == "verdict"]
    steps = [record for record in log if record["event"] == "step"]
    chart = Chart(620, 560)
    panels = entropy, reward, groups = chart.panels(3, 1, sharex=True)
    for axes, beside in zip(panels, ("entropy (nats)", "reward", "share of groups"), strict=True):
        axes.set_ylabel(beside)
    draw_course(chart, entropy, steps, {"entropy_nats": ("", "s0")})
    for start in starts[-1:]:
        for name in ("early_step", "late_step"):
            entropy.axvline(start[name], color=LIGHT["soft"], linestyle="--", linewidth=1)
        entropy.set_title("dashed: the steps that stage 2 compares")
    draw_course(
        chart,
        reward,
        steps,
        {"mean_reward": ("mean reward", "s2"), "pass_rate": ("pass rate", "s0")},
    )
    draw_course(
        chart,
        groups,
        steps,
        {
            "degenerate_all_wrong": ("all wrong", "s1"),
            "degenerate_all_right": ("all right", "s2"),
            "degenerate_fraction": ("degenerate", "s5"),
        },
    )
    groups.set(ylim=(-0.03, 1.03), xlabel="optimiser step")
    if verdicts:
        chart.figure.suptitle(plain(verdicts[-1]["message"]), fontsize=11, wrap=True)
    return chart.save(path)
