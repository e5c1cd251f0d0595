"""A training run under an entropy floor: entropy beside its target, and the weight that held it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours.
_BLUE, _RED, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#7f7f7f"

Log = Sequence[Mapping[str, float]]


def write_floor_plot(
    log: Log, probes: Sequence[tuple[int, float]], floor: float, path: str | Path
) -> Path:
    """Write a PNG (or what the suffix says) and return its path.

    Args:
        log: a Trainer's ``log_history``.
        probes: (step, entropy of rollouts in nats).
        floor: nats.
        path: of the file.

    """
    figure = Figure(figsize=(8.5, 5.5), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    entropy, weight = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _line(entropy, log, "floor_entropy", "teacher-forced, smoothed", color=_BLUE)
    _line(entropy, log, "floor_target", "its target", color=_GREY, linewidth=1)
    entropy.plot(*zip(*probes, strict=True), "o", color=_RED, label="rollouts (probe)")
    entropy.axhline(floor, color=_GREY, linestyle="--", linewidth=1, label=f"floor {floor:g}")
    entropy.set_yscale("log")
    entropy.yaxis.set_major_formatter("{x:g}")
    entropy.yaxis.set_minor_formatter("{x:g}")
    entropy.set_ylabel("entropy (nats)")
    entropy.legend(fontsize=8)
    _line(weight, log, "floor_weight", "weight", color=_GREEN)
    weight.set_ylabel("weight of the term")
    weight.set_ylim(bottom=0)
    weight.set_xlabel("optimiser step")
    weight.xaxis.get_major_locator().set_params(integer=True)
    for axes in (entropy, weight):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target


def _line(axes: Axes, log: Log, name: str, label: str, **style: object) -> None:
    found = [(entry["step"], entry[name]) for entry in log if name in entry]
    if found:
        axes.plot(*zip(*found, strict=True), label=label, **style)  # type: ignore[arg-type]
