"""The two curves against each other, and against the step, as a picture."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropyfloor.coupling.findings import stage_words
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport

# Colours that stay apart in the common forms of colour blindness (Okabe and Ito).
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#7f7f7f"


def write_coupling_plot(report: CouplingReport, path: str | Path) -> Path:
    """Write a PNG (or what the suffix says) and return its path; whiskers are 95 % intervals."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    against, along = figure.subplots(1, 2)
    _against(against, report)
    _along(along, report)
    figure.suptitle(stage_words(report), fontsize=10)
    figure.savefig(target)
    return target


def _against(axes: Axes, report: CouplingReport) -> None:
    rows = report.checkpoints
    losses, rewards = [c.sft_loss for c in rows], [c.mean_reward for c in rows]
    axes.plot(losses, rewards, color=_GREY, linewidth=1, zorder=1)
    axes.errorbar(
        losses,
        rewards,
        xerr=_whiskers(rows, "sft_loss"),
        yerr=_whiskers(rows, "mean_reward"),
        fmt="o",
        color=_BLUE,
        ecolor=_GREY,
        elinewidth=0.8,
    )
    for checkpoint in rows:
        axes.annotate(
            f"{checkpoint.step:g}",
            (checkpoint.sft_loss, checkpoint.mean_reward),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("SFT loss (nats per token of held-out demonstrations)")
    axes.set_ylabel("reward on held-out prompts")
    axes.grid(alpha=0.3)


def _along(axes: Axes, report: CouplingReport) -> None:
    rows = report.checkpoints
    steps = [c.step for c in rows]
    other = axes.twinx()
    for panel, name, colour, label in (
        (axes, "mean_reward", _BLUE, "reward"),
        (other, "sft_loss", _ORANGE, "SFT loss (nats per token)"),
    ):
        values = [getattr(c, name) for c in rows]
        panel.errorbar(steps, values, yerr=_whiskers(rows, name), color=colour, fmt="o-", capsize=2)
        panel.set_ylabel(label, color=colour)
    styles = {"best": "--", "threshold": ":"}
    for answer in report.durations:
        if answer.measured.step is not None:
            axes.axvline(
                answer.measured.step,
                color=_GREY,
                linestyle=styles[answer.question],
                label=f"{answer.question}, measured",
            )
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    axes.set_xlabel(report.settings.get("step_unit", "step"))
    axes.grid(axis="x", alpha=0.3)


def _whiskers(rows: tuple[CheckpointCoupling, ...], name: str) -> list[list[float]]:
    """Distances from the value to its interval's ends; zero where there is none."""
    below, above = [], []
    for checkpoint in rows:
        value, interval = getattr(checkpoint, name), checkpoint.intervals.get(name)
        below.append(0.0 if interval is None else max(0.0, value - interval.low))
        above.append(0.0 if interval is None else max(0.0, interval.high - value))
    return [below, above]
