"""The columns of a screening, listed once for the terminal, Markdown and HTML.

A column is left out where no checkpoint has its measure. ``importance`` decides what a narrow
terminal shows first: 0 always, larger numbers where there is room.
"""

from collections.abc import Callable
from dataclasses import dataclass

from entropyfloor.screening.peak import peak_words
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class Column:
    """One measure: its header, how it is written, and the key of its interval if one is shown."""

    header: str
    value: Callable[[CheckpointScreening], str]
    measure: str = ""
    importance: int = 3

    def interval(self, checkpoint: CheckpointScreening) -> Interval | None:
        """Its 95 % interval."""
        return checkpoint.intervals.get(self.measure)


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; a dash for what is not there."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval_words(interval: Interval | None) -> str:
    """``low–high``, or nothing."""
    return "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}"


def columns(report: ScreeningReport) -> list[Column]:
    """Columns of what was measured, in reading order; name and verdict are not among them."""
    found = [_measure("entropy (nats)", "entropy_nats", importance=0)]
    if report.has_reward:
        size = report.settings["group_size"]
        found.append(_measure("pass@1", "pass_at_1", importance=1))
        found.append(_measure("greedy", "greedy_pass_at_1", importance=3))
        ks = [k for k in report.settings["ks"] if k > 1]
        for k in ks if len(ks) <= 2 else [ks[len(ks) // 2], ks[-1]]:
            found.append(_pass_at(k, importance=2 if k == ks[-1] else 5))
        found += [
            _measure(f"degenerate g={size}", "degenerate_fraction", importance=1),
            Column(
                "wrong / right",
                lambda c: f"{number(c.degenerate_all_wrong)} / {number(c.degenerate_all_right)}",
                importance=4,
            ),
            _measure(f"p̂/p*({size})", "p_hat_over_p_star", digits=2, importance=2, shown=False),
        ]
    found += [
        _measure("unique", "unique_fraction", digits=2, importance=4, shown=False),
        _measure("tokens", "mean_tokens", digits=1, importance=5, shown=False),
        _measure("truncated", "truncated_fraction", digits=2, importance=4, shown=False),
    ]
    return [column for column in found if _present(column, report)]


def further_columns(report: ScreeningReport) -> list[Column]:
    """What a second table holds: competing predictors, diversity, what was drawn."""
    above = {column.header for column in columns(report)}
    ks = [k for k in report.settings.get("ks", ()) if f"pass@{k}" not in above]
    found = [
        _measure("entropy per rollout", "entropy_sequence_mean"),
        _measure("10 % quantile", "entropy_sequence_p10"),
        _measure("25 % quantile", "entropy_sequence_p25"),
        *(_pass_at(k) for k in ks if k > 1),
        _measure("variance in groups", "within_group_variance"),
        _measure("degenerate, predicted", "degenerate_predicted"),
        Column(
            "predicted wrong / right",
            lambda c: (
                f"{number(c.degenerate_predicted_all_wrong)} / "
                f"{number(c.degenerate_predicted_all_right)}"
            ),
        ),
        _measure("mean reward", "mean_reward"),
        _measure("self-BLEU", "self_bleu"),
        _measure("repetition", "repetition"),
        _measure("held-out loss", "held_out_loss"),
        _measure("KL to base", "kl_to_base"),
        _measure("held-out KL", "held_out_kl_to_base"),
        Column("rollouts", lambda c: f"{c.num_rollouts}"),
        Column("saved", lambda c: f"{c.samples_saved}" if c.sequential else "–"),
        Column("seconds", lambda c: f"{c.runtime_s:.1f}"),
    ]
    return [column for column in found if _present(column, report)]


def verdict_word(checkpoint: CheckpointScreening) -> str:
    """The verdict; whether it is flagged for a report of version 1, which has no other."""
    if checkpoint.flagged != (checkpoint.verdict in ("at risk", "collapsed")):
        return "flagged" if checkpoint.flagged else "not flagged"
    return checkpoint.verdict


def undecided_advice(report: ScreeningReport) -> bool:
    """Whether the recommended checkpoint is not yet known to be ready."""
    advice = report.recommendation
    chosen = [c for c in report.checkpoints if advice is not None and c.name == advice.name]
    return any(verdict_word(checkpoint) == "undecided" for checkpoint in chosen)


def verdict_class(checkpoint: CheckpointScreening) -> str:
    """``ready``, ``risk``, ``collapsed`` or ``undecided``: what styles are keyed by."""
    word = verdict_word(checkpoint)
    return {"ready": "ready", "not flagged": "ready", "at risk": "risk"}.get(
        word, "undecided" if word == "undecided" else "collapsed"
    )


def remarks(report: ScreeningReport) -> list[str]:
    """Reasons and notes, ``name: words``, the same words once; then the peaks of runs."""
    names: dict[str, list[str]] = {}
    for checkpoint in report.checkpoints:
        for words in (*checkpoint.reasons, *checkpoint.notes):
            names.setdefault(words, []).append(checkpoint.name)
    said = [f"{_some(found)}: {words}" for words, found in names.items()]
    return [*said, *peak_words(report.peaks)]


def _some(names: list[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} others"


def _measure(
    header: str, name: str, *, digits: int = 3, importance: int = 3, shown: bool = True
) -> Column:
    """Attribute ``name`` of a checkpoint; ``shown`` is about its interval."""
    return Column(
        header, lambda c: number(getattr(c, name), digits), name if shown else "", importance
    )


def _pass_at(k: int, importance: int = 3) -> Column:
    return Column(f"pass@{k}", lambda c: number(c.pass_at_k.get(k)), f"pass_at_{k}", importance)


def _present(column: Column, report: ScreeningReport) -> bool:
    return any(set(column.value(c)) - set("– /") for c in report.checkpoints)
