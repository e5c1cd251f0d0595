"""A screening as tables and sentences: its columns are listed here once for every medium.

A column is left out where no checkpoint has its measure. ``importance`` decides what a narrow
terminal shows first: 0 always, larger numbers where there is room.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entropyfloor.render.table import Cell, Column, Style, Table
from entropyfloor.render.text import markdown
from entropyfloor.screening.report import CheckpointScreening, GateResult, Peak, ScreeningReport
from entropyfloor.screening.verdict import FLAGGED
from entropyfloor.stats.intervals import Interval

_PAIRS = 4  # comparisons that are said; of more only the last, and the page has all of them
_STYLES: dict[str, Style] = {
    "ready": "good",
    "not flagged": "good",
    "at risk": "warn",
    "undecided": "open",
}


@dataclass(frozen=True)
class _Metric:
    """A column: how a checkpoint's value is written, and the key of its interval, if shown."""

    header: str
    value: Callable[[CheckpointScreening], str]
    interval: str = ""
    importance: int = 3
    style: Callable[[CheckpointScreening], Style] = lambda _: ""

    def present(self, report: ScreeningReport) -> bool:
        return any(set(self.value(c)) - set("– /") for c in report.checkpoints)

    def cell(self, checkpoint: CheckpointScreening) -> Cell:
        interval = checkpoint.intervals.get(self.interval)
        return Cell(self.value(checkpoint), interval_words(interval), self.style(checkpoint))


def screening_table(report: ScreeningReport) -> Table:
    """Name, verdict and the measures that decide, a row per checkpoint."""
    verdict = _Metric("verdict", verdict_word, importance=0, style=verdict_style)
    return _table("Screening before RL", report, [verdict, *_metrics(report)], caption(report))


def further_table(report: ScreeningReport) -> Table:
    """Competing predictors, diversity, and what was drawn."""
    return _table("Further measures", report, _further(report), "")


def gates_table(report: ScreeningReport) -> Table:
    """A row per checkpoint, a column per gate: what it is, and whether it passed."""
    names = list(dict.fromkeys(result.gate for result in report.gates))
    results = {(result.checkpoint, result.gate): result for result in report.gates}
    rows: list[tuple[Cell | str, ...]] = [
        (c.name, *(_gate_cell(results.get((c.name, name))) for name in names))
        for c in report.checkpoints
    ]
    note = "decided by the number itself; below it whether its 95 % interval leaves the limit out"
    columns = (Column("checkpoint", "left"), *map(Column, names))
    return Table("Gates", columns, tuple(rows), note)


def _gate_cell(result: GateResult | None) -> Cell:
    if result is None:
        return Cell("–")  # the base has no coverage of its own
    value = "nothing to keep" if result.value is None else f"{result.value:.3f}"
    word = "passed" if result.passed else "failed"
    sure = "" if result.interval is None else ", certain" if result.certain else ", uncertain"
    return Cell(
        f"{value} {word}",
        f"{interval_words(result.interval)}{sure}",
        "good" if result.passed else "bad",
    )


def screening_markdown(report: ScreeningReport) -> str:
    """Write the tables in Markdown, advice, reasons and notes between them."""
    lines = [screening_table(report).to_markdown(), "", f"{markdown(caption(report))}."]
    if report.gates:
        lines += ["", gates_table(report).to_markdown()]
    if words := advice_words(report):
        lines += ["", *(f"- **{markdown(sentence)}**" for sentence in words)]
    if words := remarks(report):
        lines += ["", *(f"- {markdown(remark)}" for remark in words)]
    return "\n".join([*lines, "", further_table(report).to_markdown()]) + "\n"


def caption(report: ScreeningReport) -> str:
    """What was drawn, how it was scored, and what the ranges are."""
    settings = report.settings
    scored = f", reward {settings['reward']}" if report.has_reward else ", no reward"
    return (
        f"{settings['prompts']['count']} prompts × {settings['num_samples']} samples, "
        f"T = {settings['temperature']:g}, ≤ {settings['max_new_tokens']} tokens{scored}, "
        f"seed {settings['seed']}; tau_H = {settings['tau_h']:g} nats; ranges are 95 % intervals "
        "over prompts"
    )


def advice_words(report: ScreeningReport) -> list[str]:
    """The recommendation and, where tau_H was calibrated, what came of it, as sentences."""
    words = []
    if (advice := report.recommendation) is not None:
        start = f"Start from {advice.name}"
        if advice.name is None:
            start = "No checkpoint is recommended"
        elif undecided_advice(report):
            start = f"Draw more; best so far is {advice.name}"
        words.append(f"{start}: {advice.reason}")
        if advice.cost and advice.highest_pass_at_1 != advice.name:
            words.append(f"Highest pass@1 would pick {advice.highest_pass_at_1}: {advice.cost}")
        words += advice.disagreements
    if report.calibration is not None:
        words.append(f"Calibration of tau_H: {report.calibration.message}")
    return words


def remarks(report: ScreeningReport) -> list[str]:
    """Reasons and notes, ``name: words``, the same words once; comparisons and peaks of runs."""
    names: dict[str, list[str]] = {}
    for checkpoint in report.checkpoints:
        for words in (*checkpoint.reasons, *checkpoint.notes):
            names.setdefault(words, []).append(checkpoint.name)
    said = [f"{_some(checkpoints)}: {words}" for words, checkpoints in names.items()]
    if (trained_on := report.settings.get("trained_on")) and trained_on["share"] > 0:
        said.insert(0, f"trained on, not held out: {trained_on['words']} of {trained_on['source']}")
    shown = report.comparisons if len(report.comparisons) <= _PAIRS else report.comparisons[-1:]
    pairs = [f"{pair.second} against {pair.first}: {pair.message}" for pair in shown]
    return [*said, *pairs, *peak_words(report.peaks)]


def peak_words(peaks: Sequence[Peak]) -> list[str]:
    """One sentence per run."""
    sentences = []
    for run in dict.fromkeys(peak.run for peak in peaks):
        of_run = [peak for peak in peaks if peak.run == run]
        shown = of_run if len(of_run) < 3 else [of_run[0], of_run[-1]]
        parts = [
            f"{peak.measure.replace('pass_at_', 'pass@')} {peak.value:.3f} at step {peak.step}"
            + ("" if peak.step == peak.last_step else f" ({peak.last_value:.3f} at the last)")
            for peak in shown
        ]
        first = of_run[0]
        sentences.append(
            f"Peak of {run} over {first.num_checkpoints} checkpoints up to step "
            f"{first.last_step}: {', '.join(parts)}"
        )
    return sentences


def verdict_word(checkpoint: CheckpointScreening) -> str:
    """The verdict; whether it is flagged for a report of version 1, which has no other."""
    if checkpoint.flagged != (checkpoint.verdict in FLAGGED):
        return "flagged" if checkpoint.flagged else "not flagged"
    return checkpoint.verdict


def verdict_style(checkpoint: CheckpointScreening) -> Style:
    """Style of a verdict in a table, and the name of its colour in figures."""
    return _STYLES.get(verdict_word(checkpoint), "bad")


def undecided_advice(report: ScreeningReport) -> bool:
    """Whether the recommended checkpoint is not yet known to be ready."""
    advice = report.recommendation
    chosen = [c for c in report.checkpoints if advice is not None and c.name == advice.name]
    return any(verdict_word(checkpoint) == "undecided" for checkpoint in chosen)


def interval_words(interval: Interval | None) -> str:
    """``low–high``, or nothing."""
    return "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}"


def _table(title: str, report: ScreeningReport, metrics: Sequence[_Metric], note: str) -> Table:
    shown = [measure for measure in metrics if measure.present(report)]
    columns = [
        Column(m.header, "left" if m.header == "verdict" else "right", importance=m.importance)
        for m in shown
    ]
    rows: tuple[tuple[Cell | str, ...], ...] = tuple(
        (c.name, *(measure.cell(c) for measure in shown)) for c in report.checkpoints
    )
    return Table(title, (Column("checkpoint", "left"), *columns), rows, note)


def _metrics(report: ScreeningReport) -> list[_Metric]:
    """In reading order."""
    columns = [_attribute("entropy (nats)", "entropy_nats", importance=0)]
    if report.has_reward:
        size = report.settings["group_size"]
        ks = [k for k in report.settings["ks"] if k > 1]
        columns += [
            _attribute("pass@1", "pass_at_1", importance=1),
            _attribute("greedy", "greedy_pass_at_1"),
            *(
                _pass_at(k, importance=2 if k == ks[-1] else 5)
                for k in (ks if len(ks) <= 2 else [ks[len(ks) // 2], ks[-1]])
            ),
            _attribute(f"degenerate g={size}", "degenerate_fraction", importance=1),
            _pair("wrong / right", "degenerate_all_wrong", "degenerate_all_right", importance=4),
            _attribute(f"p̂/p*({size})", "p_hat_over_p_star", 2, importance=2, interval=False),
        ]
    return [
        *columns,
        _attribute("unique", "unique_fraction", 2, importance=4, interval=False),
        _attribute("tokens", "mean_tokens", 1, importance=5, interval=False),
        _attribute("truncated", "truncated_fraction", 2, importance=4, interval=False),
    ]


def _further(report: ScreeningReport) -> list[_Metric]:
    above = {measure.header for measure in _metrics(report)}
    ks = [k for k in report.settings.get("ks", ()) if k > 1 and f"pass@{k}" not in above]
    wrong, right = "degenerate_predicted_all_wrong", "degenerate_predicted_all_right"
    return [
        _attribute("entropy per rollout", "entropy_sequence_mean"),
        _attribute("10 % quantile", "entropy_sequence_p10"),
        _attribute("25 % quantile", "entropy_sequence_p25"),
        *map(_pass_at, ks),
        _attribute("variance in groups", "within_group_variance"),
        _attribute("degenerate, predicted", "degenerate_predicted"),
        _pair("predicted wrong / right", wrong, right),
        _attribute("outcome-degenerate", "outcome_degenerate_fraction"),
        _attribute("mean reward", "mean_reward"),
        _attribute("self-BLEU", "self_bleu"),
        _attribute("repetition", "repetition"),
        _attribute("junk", "junk_fraction"),
        _attribute("held-out loss", "held_out_loss"),
        _attribute("KL to base", "kl_to_base"),
        _attribute("held-out KL", "held_out_kl_to_base"),
        _Metric("rollouts", lambda c: f"{c.num_rollouts}"),
        _Metric("saved", lambda c: f"{c.samples_saved}" if c.sequential else "–"),
        _Metric("seconds", lambda c: f"{c.runtime_s:.1f}"),
    ]


def _attribute(
    header: str, name: str, digits: int = 3, *, importance: int = 3, interval: bool = True
) -> _Metric:
    return _Metric(
        header, lambda c: _number(getattr(c, name), digits), name if interval else "", importance
    )


def _pair(header: str, first: str, second: str, importance: int = 3) -> _Metric:
    return _Metric(
        header,
        lambda c: f"{_number(getattr(c, first))} / {_number(getattr(c, second))}",
        importance=importance,
    )


def _pass_at(k: int, importance: int = 3) -> _Metric:
    return _Metric(f"pass@{k}", lambda c: _number(c.pass_at_k.get(k)), f"pass_at_{k}", importance)


def _number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; a dash for what is not there."""
    return "–" if value is None else f"{value:.{digits}f}"


def _some(names: list[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} others"
