"""What a measurement of the coupling says: at most six sentences, made from its numbers."""

from entropyfloor.coupling.durations import Duration
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.stats.intervals import Interval


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
