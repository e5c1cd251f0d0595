"""The tables of a coupling, each made once: for the page, as Markdown and for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from entropyfloor.coupling.answer import answer, duration_words, interval_words
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport
from entropyfloor.render.table import Cell, Column, Table
from entropyfloor.render.text import markdown, plain
from entropyfloor.stats.intervals import Interval

_KLS = {
    "forward_own": "KL(SFT‖RL), own",
    "forward_demonstrations": "KL(SFT‖RL), demos",
    "reverse_rollouts": "KL(RL‖SFT), rollouts",
}


def coupling_markdown(report: CouplingReport) -> str:
    """Write the answer and the tables as GitHub-flavoured Markdown."""
    parts = [f"# Coupling of SFT and RL: {report.stage}", *map(markdown, answer(report))]
    for table in (coupling_table(report), durations_table(report)):
        parts += [f"## {markdown(table.title)}", table.to_markdown(), markdown(table.note)]
    return "\n\n".join(parts) + "\n"


def coupling_terminal(report: CouplingReport, width: int) -> Iterator[RenderableType]:
    """Yield what a rich console prints: the table, as far as it fits, and the answer."""
    yield coupling_table(report).to_rich(width)
    yield from (Text(plain(words)) for words in answer(report))


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
    """Every measure of every checkpoint; its interval below it."""
    aligned = bool(report.aligned)
    columns = [
        Column("checkpoint", "left"),
        *map(Column, (report.step_unit, "SFT loss", "rise", "reward")),
        Column("gain"),
        *(Column(header, importance=2) for header in _KLS.values()),
        Column("identity gap", importance=1),
    ]
    if aligned:
        columns.append(Column("cosine", importance=1))
    rows = []
    for c in report.checkpoints:
        moved = c.identity is not None  # the start has no rise, no gain and no KL
        row = [
            Cell(c.name),
            Cell(f"{c.step:g}"),
            _number(c.sft_loss, c.intervals.get("sft_loss")),
            _number(c.loss_rise if moved else None, c.intervals.get("loss_rise"), "+.3f"),
            _number(c.mean_reward, c.intervals.get("mean_reward")),
            _number(c.reward_gain if moved else None, c.intervals.get("reward_gain"), "+.3f"),
            *(_number(c.kl.get(name), c.intervals.get(name)) for name in _KLS),
            Cell("–")
            if c.identity is None
            else _number(c.identity.gap, c.identity.intervals.get("gap"), "+.3f"),
        ]
        if aligned:
            agreement = c.alignment and c.alignment.whole.agreement
            row.append(
                _number(agreement.cosine, agreement.interval, "+.3f") if agreement else Cell("–")
            )
        rows.append(tuple(row))
    heading = f"Coupling of SFT and RL: {report.stage}"
    return Table(heading, tuple(columns), tuple(rows), f"{caption(report)}.", "measures")


def durations_table(report: CouplingReport) -> Table:
    """How long to train, by measurement, by the model and by the PL constants."""
    headers = ("reward per nat", "measured", "model", "PL constants (estimates)")
    rows = tuple(
        (
            f"best {report.step_unit}" if duration.question == "best" else "threshold",
            f"{duration.weight:g}",
            duration_words(duration.measured),
            duration_words(duration.modelled),
            "–" if duration.by_pl is None else f"{duration.by_pl:.0f}",
            duration.words,
        )
        for duration in report.durations
    )
    constants = ", ".join(
        f"{pl.mu:.3g} of {what} (from {report.checkpoints[pl.at].name})"
        for name, what in (("sft_loss", "the SFT loss"), ("reward", "the reward"))
        if (pl := report.pl.get(name)) and pl.mu is not None and pl.at is not None
    )
    note = "A step with its 95 % interval over prompts."
    if constants:
        note += f" Estimated PL constants, too large rather than too small: {constants}."
    columns = (
        Column("question", "left"),
        *map(Column, headers),
        Column("how they compare", "left"),
    )
    return Table("How long to train", columns, rows, note, "steps")


def layers_table(checkpoint: CheckpointCoupling) -> Table:
    """Alignment and spectral concentration of the two gradients, layer by layer."""
    alignment = checkpoint.alignment
    assert alignment is not None
    top = f"top {alignment.rank}"
    headers = (
        "cosine",
        "noise removed",
        f"SFT, {top}",
        f"RL, {top}",
        "bound",
        "bound if unrelated",
    )
    rows: tuple[tuple[Cell | str, ...], ...] = tuple(
        (
            layer.name,
            _number(layer.agreement.cosine, layer.agreement.interval, "+.3f"),
            _number(layer.agreement.cosine_without_noise, None, "+.3f"),
            *map(_number, (layer.sft_share, layer.rl_share, layer.cosine_bound)),
            _number(layer.cosine_bound_if_unrelated),
        )
        for layer in (alignment.whole, *alignment.layers)
    )
    columns = (Column("layer", "left"), *map(Column, headers))
    return Table(f"Layers of {checkpoint.name}", columns, rows)


def _number(value: float | None, interval: Interval | None = None, form: str = ".3f") -> Cell:
    return Cell("–") if value is None else Cell(f"{value:{form}}", interval_words(interval))
