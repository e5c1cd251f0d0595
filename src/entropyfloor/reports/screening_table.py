"""A screening as a table, for a terminal and as Markdown; one list of columns serves both."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from entropyfloor.screening.report import CheckpointScreening, ScreeningReport


@dataclass(frozen=True)
class _Column:
    header: str
    measure: str  # key of the interval, if one is shown
    value: Callable[[CheckpointScreening], str]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _columns(report: ScreeningReport) -> list[_Column]:
    columns = [_Column("entropy (nats)", "entropy_nats", lambda c: _number(c.entropy_nats))]
    if report.has_reward:
        size = report.settings["group_size"]
        ks = [k for k in report.settings["ks"] if k > 1]
        shown = ks if len(ks) <= 2 else [ks[len(ks) // 2], ks[-1]]
        columns.append(_Column("pass@1", "pass_at_1", lambda c: _number(c.pass_at_1)))
        for k in shown:
            columns.append(
                _Column(f"pass@{k}", f"pass_at_{k}", lambda c, k=k: _number(c.pass_at_k.get(k)))  # type: ignore[misc]
            )
        columns += [
            _Column(
                f"degenerate g={size}",
                "degenerate_fraction",
                lambda c: _number(c.degenerate_fraction),
            ),
            _Column(
                "wrong / right",
                "",
                lambda c: f"{_number(c.degenerate_all_wrong)} / {_number(c.degenerate_all_right)}",
            ),
            _Column(f"p̂/p*({size})", "", lambda c: _number(c.p_hat_over_p_star, 2)),
        ]
    return [
        *columns,
        _Column("unique", "", lambda c: _number(c.unique_fraction, 2)),
        _Column("tokens", "", lambda c: _number(c.mean_tokens, 1)),
        _Column("truncated", "", lambda c: _number(c.truncated_fraction, 2)),
    ]


def _range(checkpoint: CheckpointScreening, measure: str) -> str:
    interval = checkpoint.intervals.get(measure)
    return "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}"


def _verdict(checkpoint: CheckpointScreening) -> str:
    return "flagged" if checkpoint.flagged else "not flagged"


def _caption(report: ScreeningReport) -> str:
    settings = report.settings
    scored = f", reward {settings['reward']}" if report.has_reward else ", no reward"
    return (
        f"{settings['prompts']['count']} prompts × {settings['num_samples']} samples, "
        f"T = {settings['temperature']:g}, ≤ {settings['max_new_tokens']} tokens{scored}, "
        f"seed {settings['seed']}; tau_H = {settings['tau_h']:g} nats; ranges are 95 % intervals "
        "over prompts"
    )


def screening_table(report: ScreeningReport) -> Table:
    """Build a rich table: intervals below the measures, flagged checkpoints in red."""
    table = Table(title="Screening before RL", caption=_caption(report), show_lines=False)
    table.add_column("checkpoint", overflow="fold")
    columns = _columns(report)
    for column in columns:
        table.add_column(column.header, justify="right")
    table.add_column("verdict")
    for checkpoint in report.checkpoints:
        cells = []
        for column in columns:
            cell = Text(column.value(checkpoint), justify="right")
            if interval := _range(checkpoint, column.measure):
                cell.append(f"\n{interval}", style="dim")
            cells.append(cell)
        style = "bold red" if checkpoint.flagged else "green"
        table.add_row(Text(checkpoint.name), *cells, Text(_verdict(checkpoint), style=style))
    return table


def remarks(report: ScreeningReport) -> list[str]:
    """Reasons, then notes, of every checkpoint that has any: ``name: words``."""
    return [
        f"{checkpoint.name}: {words}"
        for checkpoint in report.checkpoints
        for words in (*checkpoint.reasons, *checkpoint.notes)
    ]


def screening_markdown(report: ScreeningReport) -> str:
    """Write the table in Markdown, intervals in brackets, reasons and notes listed below."""
    columns = _columns(report)
    headers = ["checkpoint", *(column.header for column in columns), "verdict"]
    lines = [
        f"| {' | '.join(headers)} |",
        f"|---|{'---:|' * len(columns)}---|",
    ]
    for checkpoint in report.checkpoints:
        cells = []
        for column in columns:
            interval = _range(checkpoint, column.measure)
            cells.append(column.value(checkpoint) + (f" ({interval})" if interval else ""))
        name = checkpoint.name.replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(cells)} | {_verdict(checkpoint)} |")
    lines += ["", _caption(report) + "."]
    if words := remarks(report):
        lines += ["", *(f"- {remark}" for remark in words)]
    return "\n".join(lines) + "\n"
