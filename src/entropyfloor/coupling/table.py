"""The tables of a coupling, each made once, and what it says, in at most six sentences."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from entropyfloor.coupling.durations import Duration
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.render.table import Cell, Column, Table
from entropyfloor.render.text import markdown, plain
from entropyfloor.stats.intervals import Interval

_KLS = {
    "forward_own": "KL(SFT‖RL), own",
    "forward_demonstrations": "KL(SFT‖RL), demos",
    "reverse_rollouts": "KL(RL‖SFT), rollouts",
}


def answer(report: CouplingReport) -> list[str]:
    """Reward and SFT loss, the KL identity, alignment, the best duration, the threshold, notes."""
    last = report.checkpoints[-1]
    # With weight 1 the best step is the threshold: one sentence says both.
    durations = report.durations[: 1 if report.durations[0].weight == 1.0 else 2]
    notes = [f"{c.name}: {note}" for c in report.checkpoints for note in c.notes]
    sentences = [
        f"From {report.checkpoints[0].name} to {last.name} the reward "
        f"{_moved(last.reward_gain, last.intervals.get('reward_gain'))} and the SFT loss "
        f"{_moved(last.loss_rise, last.intervals.get('loss_rise'))} nats per token",
        "" if last.identity is None else identity_words(last),
        alignment_words(report.aligned[-1]) if report.aligned else "",
        *(_duration_words(duration, report) for duration in durations),
        "; ".join(notes),
    ]
    return [f"{words}." for words in sentences if words]


def interval_words(interval: Interval | None, digits: int = 3) -> str:
    """``low – high``, or nothing."""
    return "" if interval is None else f"{interval.low:.{digits}f} – {interval.high:.{digits}f}"


def duration_words(duration: Duration | None) -> str:
    """A step with its interval; a dash where there is none."""
    if duration is None or duration.step is None:
        return "–"
    interval = interval_words(duration.interval, 0)
    return f"{duration.step:.0f} ({interval})" if interval else f"{duration.step:.0f}"


def identity_words(checkpoint: CheckpointCoupling) -> str:
    """What the gap between the rise and the KL is, and where it comes from."""
    exact = checkpoint.identity
    assert exact is not None
    side = "above" if exact.rise >= 0 else "below"
    words = (
        f"At {checkpoint.name} the SFT loss of the RL model lies {abs(exact.rise):.3f} nats per "
        f"answer {side} that of the SFT model and KL(SFT‖RL) is {exact.kl:.3f}: "
    )
    if _within_noise(exact.intervals.get("gap")):
        return f"{words}the gap of {exact.gap:+.3f} is within the noise of these prompts"
    return (
        f"{words}a gap of {exact.gap:+.3f}, of which {exact.tokens:+.3f} because the SFT model "
        "does not predict the demonstrations' tokens as often as they come (it is not at an "
        f"optimum for these rows) and {exact.contexts:+.3f} because its own samples visit other "
        "contexts"
    )


def alignment_words(checkpoint: CheckpointCoupling) -> str:
    """Whether a small step for the reward raises or lowers the SFT loss."""
    assert checkpoint.alignment is not None
    agreement = checkpoint.alignment.whole.agreement
    if agreement.cosine is None:
        return f"At {checkpoint.name} a gradient vanishes, so the two have no angle"
    meaning = (
        f"a small step for the reward {'lowers' if agreement.cosine > 0 else 'raises'} the SFT loss"
    )
    if agreement.interval is None or _within_noise(agreement.interval):
        meaning = "too noisy to say whether a step for the reward raises or lowers the SFT loss"
    interval = f" ({interval_words(agreement.interval)})" if agreement.interval else ""
    signal = ", ".join(
        f"{name} {share:.0%}"
        for name, share in (("SFT", agreement.sft_signal), ("RL", agreement.rl_signal))
        if share is not None
    )
    return (
        f"At {checkpoint.name} the cosine of the SFT and the RL gradient is {agreement.cosine:+.3f}"
        f"{interval}: {meaning}{f' (not noise: {signal})' if signal else ''}"
    )


def _duration_words(duration: DurationAnswer, report: CouplingReport) -> str:
    unit, threshold = report.step_unit, duration.question == "threshold"
    price = "" if threshold else f"{duration.weight:g} × "
    also = " (threshold)" if threshold or duration.weight == 1.0 else ""
    words = f"Reward − {price}SFT loss rise is greatest{also} at {unit} "
    words += f"{duration_words(duration.measured)} by measurement"
    if duration.modelled is not None and duration.modelled.step is not None:
        words += f", {duration_words(duration.modelled)} by the model"
    if duration.by_pl is not None:
        words += f", {duration.by_pl:.0f} by the estimated PL constants"
    return f"{words} ({duration.measured.words})" if duration.measured.words else words


def _moved(by: float, interval: Interval | None) -> str:
    verb = "rose" if by >= 0 else "fell"
    if interval is None:
        return f"{verb} by {abs(by):.3f}"
    low, high = interval if by >= 0 else (-interval.high, -interval.low)
    noise = ", which is within the noise," if _within_noise(interval) else ""
    return f"{verb} by {abs(by):.3f} ({low:.3f} to {high:.3f}){noise}"


def _within_noise(interval: Interval | None) -> bool:
    return interval is not None and interval.low <= 0.0 <= interval.high


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
