"""A watched GRPO run: entropy, reward and degenerate groups by optimiser step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours.
_BLUE, _RED, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#7f7f7f"


def write_monitor_plot(log: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Args:
        log: the records of ``entropyfloor.rl.monitor_log.read_log``.
        path: of the file.

    """
    starts = [record for record in log if record["event"] == "start"]
    verdicts = [record for record in log if record["event"] == "verdict"]
    steps = [record for record in log if record["event"] == "step"]
    figure = Figure(figsize=(8.5, 6.5), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    entropy, reward, groups = figure.subplots(3, 1, sharex=True)
    _line(entropy, steps, "entropy_nats", "entropy", _BLUE)
    entropy.set_ylabel("entropy (nats)")
    for start in starts[-1:]:
        for name in ("early_step", "late_step"):
            entropy.axvline(start[name], color=_GREY, linestyle="--", linewidth=1)
        entropy.set_title("dashed: the steps that stage 2 compares", fontsize=8, loc="left")
    _line(reward, steps, "mean_reward", "mean reward", _GREEN, linewidth=3.0, alpha=0.4)
    _line(reward, steps, "pass_rate", "pass rate", _BLUE)
    reward.set_ylabel("reward")
    _line(groups, steps, "degenerate_all_wrong", "all wrong", _RED)
    _line(groups, steps, "degenerate_all_right", "all right", _GREEN)
    _line(groups, steps, "degenerate_fraction", "degenerate", _GREY)
    groups.set_ylabel("share of groups")
    groups.set_ylim(-0.03, 1.03)
    groups.set_xlabel("optimiser step")
    groups.xaxis.get_major_locator().set_params(integer=True)
    for axes in (entropy, reward, groups):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not entropy and axes.lines:
            axes.legend(fontsize=8)
    if verdicts:
        figure.suptitle(verdicts[-1]["message"], fontsize=8, wrap=True)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target


def _line(
    axes: Axes,
    steps: Sequence[Mapping[str, Any]],
    name: str,
    label: str,
    colour: str,
    **style: Any,
) -> None:
    found = [(s["step"], s[name]) for s in steps if s.get(name) is not None]
    if found:
        style = {"linewidth": 1.2, **style}
        axes.plot(*zip(*found, strict=True), color=colour, label=label, **style)
