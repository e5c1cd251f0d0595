"""A measurement of the coupling as a table for a terminal, and as Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from entropyfloor.coupling.findings import findings, interval_words, stage_words
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class CouplingColumn:
    """One measure of every checkpoint.

    Attributes:
        header: of the column.
        value: formatted; a dash where there is none.
        interval: 95 %, or None.

    """

    header: str
    value: Callable[[CheckpointCoupling], str]
    interval: Callable[[CheckpointCoupling], Interval | None]


def coupling_columns(report: CouplingReport) -> list[CouplingColumn]:
    """Columns that say something for this report."""
    columns = [
        CouplingColumn(report.settings.get("step_unit", "step"), lambda c: f"{c.step:g}", _none),
        _measured("SFT loss", "sft_loss"),
        _measured("rise", "loss_rise"),
        _measured("reward", "mean_reward"),
        _measured("gain", "reward_gain"),
        _kl("KL(SFT‖RL), own", "forward_own"),
        _kl("KL(SFT‖RL), demos", "forward_demonstrations"),
        _kl("KL(RL‖SFT), rollouts", "reverse_rollouts"),
        CouplingColumn("identity gap", _gap, _gap_interval),
    ]
    if any(c.alignment is not None for c in report.checkpoints):
        columns.append(CouplingColumn("cosine", _cosine, _cosine_interval))
    return columns


def caption(report: CouplingReport) -> str:
    """What was measured, on what."""
    settings = report.settings
    return (
        f"{settings['demonstrations']['count']} demonstrations, {settings['prompts']['count']} "
        f"prompts × {settings['num_samples']} samples at T = 1, ≤ {settings['max_new_tokens']} "
        f"tokens, reward {settings['reward']}, seed {settings['seed']}; losses and KLs in nats per "
        "token, the gap in nats per answer; ranges are 95 % intervals over prompts"
    )


def coupling_table(report: CouplingReport) -> Table:
    """Build a rich table."""
    table = Table(
        title=f"Coupling of SFT and RL: {stage_words(report)}",
        caption=caption(report),
        pad_edge=False,
    )
    columns = coupling_columns(report)
    table.add_column("checkpoint", overflow="fold")
    for column in columns:
        table.add_column(column.header, justify="right")
    for checkpoint in report.checkpoints:
        cells = []
        for column in columns:
            cell = Text(column.value(checkpoint), justify="right")
            if words := interval_words(column.interval(checkpoint)):
                cell.append(f"\n{words}", style="dim")
            cells.append(cell)
        table.add_row(Text(checkpoint.name), *cells)
    return table


def coupling_markdown(report: CouplingReport) -> str:
    """Write the table in Markdown, intervals in brackets, findings below."""
    columns = coupling_columns(report)
    lines = [
        f"| {' | '.join(['checkpoint', *(c.header for c in columns)])} |",
        "|---|" + "---:|" * len(columns),
    ]
    for checkpoint in report.checkpoints:
        cells = [_escaped(checkpoint.name)]
        for column in columns:
            words = interval_words(column.interval(checkpoint))
            cells.append(column.value(checkpoint) + (f" ({words})" if words else ""))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{_escaped(caption(report))}.", ""]
    lines += [f"- {_escaped(words)}" for words in findings(report)]
    return "\n".join(lines) + "\n"


def _measured(header: str, name: str) -> CouplingColumn:
    start_has_none = name in ("loss_rise", "reward_gain")

    def value(checkpoint: CheckpointCoupling) -> str:
        if start_has_none and checkpoint.identity is None:
            return "–"
        return f"{getattr(checkpoint, name):{'+' if start_has_none else ''}.3f}"

    return CouplingColumn(header, value, lambda c: c.intervals.get(name))


def _kl(header: str, name: str) -> CouplingColumn:
    def value(checkpoint: CheckpointCoupling) -> str:
        found = checkpoint.kl.get(name)
        return "–" if found is None else f"{found:.3f}"

    return CouplingColumn(header, value, lambda c: c.intervals.get(name))


def _none(_: CheckpointCoupling) -> None:
    return None


def _gap(checkpoint: CheckpointCoupling) -> str:
    return "–" if checkpoint.identity is None else f"{checkpoint.identity.gap:+.3f}"


def _gap_interval(checkpoint: CheckpointCoupling) -> Interval | None:
    return None if checkpoint.identity is None else checkpoint.identity.intervals.get("gap")


def _cosine(checkpoint: CheckpointCoupling) -> str:
    found = checkpoint.alignment and checkpoint.alignment.whole.agreement.cosine
    return "–" if found is None else f"{found:+.3f}"


def _cosine_interval(checkpoint: CheckpointCoupling) -> Interval | None:
    if checkpoint.alignment is None:
        return None
    return checkpoint.alignment.whole.agreement.interval


def _escaped(text: str) -> str:
    """A name is never markup: no table cell ends in it, and no emphasis begins."""
    for letter in ("\\", "|", "*", "`", "<"):
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
