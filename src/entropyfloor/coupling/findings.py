"""A measurement of the coupling in sentences: what table, Markdown and page say below the numbers.

Every sentence about an estimate says that it is one.
"""

import re
from collections.abc import Iterator

from entropyfloor.coupling.durations import Duration
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.stats.intervals import Interval

_STAGE = {"sft-rl": "RL after SFT", "rl-sft": "SFT after RL"}


def sentence(words: str) -> str:
    """A capital at the start and a full stop at the end; a name in front keeps its spelling."""
    if re.match(r"[a-z]+[ ,]", words):
        words = words[0].upper() + words[1:]
    return f"{words}."


def stage_words(report: CouplingReport) -> str:
    """Name the order: ``RL after SFT``."""
    return _STAGE[report.order]


def findings(report: CouplingReport) -> list[str]:
    """The sentences, without full stops at the end."""
    return [
        *_ends(report),
        *_identities(report),
        *_gradients(report),
        *_pl(report),
        *(_duration_words(answer, report) for answer in _different(report)),
        *(f"{c.name}: {note}" for c in report.checkpoints for note in c.notes),
    ]


def interval_words(interval: Interval | None, digits: int = 3) -> str:
    """``low – high``, or nothing."""
    return "" if interval is None else f"{interval.low:.{digits}f} – {interval.high:.{digits}f}"


def _ends(report: CouplingReport) -> Iterator[str]:
    last = report.checkpoints[-1]
    yield (
        f"from {report.checkpoints[0].name} to {last.name} the reward "
        f"{_changed(last.reward_gain, last.intervals.get('reward_gain'))} and the SFT loss "
        f"{_changed(last.loss_rise, last.intervals.get('loss_rise'))} nats per token"
    )


def _changed(by: float, interval: Interval | None) -> str:
    verb = "rose" if by >= 0 else "fell"
    if interval is None:
        return f"{verb} by {abs(by):.3f}"
    low, high = (interval.low, interval.high) if by >= 0 else (-interval.high, -interval.low)
    noise = ", which is within the noise," if interval.low <= 0.0 <= interval.high else ""
    return f"{verb} by {abs(by):.3f} ({low:.3f} to {high:.3f}){noise}"


def _identities(report: CouplingReport) -> Iterator[str]:
    last = report.checkpoints[-1]
    if last.identity_words:
        yield (
            f"{last.name}: {last.identity_words}. The two are equal only at an SFT optimum and on "
            "the distribution of the demonstrations"
        )


def _gradients(report: CouplingReport) -> Iterator[str]:
    known = [c for c in report.checkpoints if c.alignment is not None]
    for checkpoint in (known[:1] + known[-1:]) if len(known) > 1 else known:
        yield _alignment_words(checkpoint)


def _alignment_words(checkpoint: CheckpointCoupling) -> str:
    alignment = checkpoint.alignment
    assert alignment is not None
    whole, found = alignment.whole, alignment.whole.agreement
    if found.cosine is None:
        return f"{checkpoint.name}: a gradient vanishes, so they have no angle"
    where = f" ({interval_words(found.interval)})" if found.interval else ""
    clear = found.interval is not None and not found.interval.low <= 0.0 <= found.interval.high
    meaning = (
        "too noisy to say whether a step for the reward raises or lowers the SFT loss"
        if not clear
        else "a small step for the reward lowers the SFT loss"
        if found.cosine > 0
        else "a small step for the reward raises the SFT loss"
    )
    signal = ", ".join(
        f"{name} {share:.0%}"
        for name, share in (("SFT", found.sft_signal), ("RL", found.rl_signal))
        if share is not None
    )
    words = (
        f"{checkpoint.name}: cosine of the SFT and the RL gradient {found.cosine:+.3f}{where}: "
        f"{meaning}; share of the sampled gradients that is not noise: {signal}"
    )
    if (
        whole.sft_share is not None
        and whole.rl_share is not None
        and whole.cosine_bound is not None
    ):
        words += (
            f"; the top {alignment.rank} singular directions of each matrix hold "
            f"{whole.sft_share:.0%} of the SFT and {whole.rl_share:.0%} of the RL gradient, which "
            f"bounds the cosine by {whole.cosine_bound:.3f} as these directions lie, and by "
            f"{whole.cosine_bound_if_unrelated:.3f} if they lay at random"
        )
        if abs(found.cosine) > (whole.cosine_bound_if_unrelated or 0.0):
            words += ", which this cosine exceeds: they do not"
    return words


def _pl(report: CouplingReport) -> Iterator[str]:
    for name, what in (("sft_loss", "the SFT loss"), ("reward", "the reward")):
        found = report.pl.get(name)
        if found is not None and found.mu is not None and found.at is not None:
            yield (
                f"estimated PL constant of {what}: {found.mu:.3g}, from "
                f"{report.checkpoints[found.at].name}, the least of {found.points} "
                f"checkpoint{'' if found.points == 1 else 's'} that can tell; too large rather "
                "than too small, and not a bound"
            )


def _different(report: CouplingReport) -> list[DurationAnswer]:
    """With weight 1 the best step is the threshold: one sentence says both."""
    found = list(report.durations)
    return found[:1] if found and found[0].weight == 1.0 else found


def _duration_words(answer: DurationAnswer, report: CouplingReport) -> str:
    unit = report.settings.get("step_unit", "step")
    start = (
        f"reward - {answer.weight:g} x SFT loss rise is greatest "
        f"{'(threshold) ' if answer.weight == 1.0 else ''}at {unit}"
        if answer.question == "best"
        else f"threshold, after which reward - SFT loss rise only falls, one for one: {unit}"
    )
    words = f"{start} {duration_text(answer.measured)} by measurement"
    if answer.modelled is not None:
        words += f", {duration_text(answer.modelled)} by the model"
        if answer.by_pl is not None:
            words += f", {answer.by_pl:.0f} by the estimated PL constants"
    if answer.measured.words:
        words += f" ({answer.measured.words})"
    return f"{words}: {answer.words}" if answer.words else words


def duration_text(found: Duration) -> str:
    """A step with its interval; a dash where there is none."""
    if found.step is None:
        return "–"
    interval = "" if found.interval is None else f" ({interval_words(found.interval, 0)})"
    return f"{found.step:.0f}{interval}"
