"""Stage two of screening on the log of a run that was not watched: what can be told from it.

    entropy        fell by more than tau_2 between the early and the late step: collapsed
                   (``collapse_rule.py``), or began below tau_H with most groups degenerate
    degenerate     mean share of groups that teach nothing up to the late step
    p̂ / p*(g)      pass rate over the majority-degeneration threshold, at the early step and last

Columns are mapped by name, never by guess: those below are known, others are named by flags, and
what is missing is said ("cannot tell"). A mean reward is a pass rate only if rewards are 0 or 1,
which a log does not say.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from entropyfloor.rl.collapse_rule import (
    COLLAPSED,
    UNKNOWN,
    WAITING,
    CollapseRule,
    Decision,
    began_collapsed,
)
from entropyfloor.rl.options import DiagnoseOptions
from entropyfloor.rl.run_logs import RunLog
from entropyfloor.stats.groups import p_star

# What -> columns that mean it, the best first. TensorBoard and wandb put "train/" before trl's.
_KNOWN = {
    "entropy": ("entropy", "actor/entropy", "actor/entropy_loss"),
    "degenerate": ("groups/degenerate_fraction", "frac_reward_zero_std"),
    "pass_rate": ("groups/pass_rate",),
}
_WORDS = {
    "entropy": "the mean token entropy",
    "degenerate": "the share of degenerate groups",
    "pass_rate": "the pass rate",
}
SCHEMA, SCHEMA_VERSION = "entropyfloor.diagnosis", 1


@dataclass(frozen=True)
class Diagnosis:
    """What the log of a run says."""

    source: str
    format: str
    first_step: int
    last_step: int
    max_steps: int
    temperature: float
    early_step: int
    late_step: int
    columns: Mapping[str, str | None]  # entropy, degenerate, pass_rate -> column read, if any
    decision: Decision  # verdict waiting, healthy, collapsed or unknown
    degenerate_fraction: float | None  # mean up to the late step
    last_degenerate_fraction: float | None
    p_hat_over_p_star: float | None  # at the early step
    last_p_hat_over_p_star: float | None
    cannot_tell: tuple[str, ...]  # what is missing, and how to give it
    notes: tuple[str, ...]

    @property
    def collapsed(self) -> bool:
        """Whether the run has collapsed, or began so."""
        return self.decision.verdict == COLLAPSED

    def sentences(self) -> list[str]:
        """The verdict, what was counted, what cannot be told, and what else to know."""
        words = "cannot tell" if self.decision.verdict == UNKNOWN else self.decision.verdict
        sentences = [f"{words}: {self.decision.reason}"]
        if self.degenerate_fraction is not None:
            sentences.append(
                f"degenerate groups: {self.degenerate_fraction:.1%} up to step {self.late_step}, "
                f"{self.last_degenerate_fraction:.1%} at the last"
            )
        if self.p_hat_over_p_star is not None:
            sentences.append(
                f"p̂/p*: {self.p_hat_over_p_star:.2f} at step {self.early_step}, "
                f"{self.last_p_hat_over_p_star:.2f} at the last; below 1 most groups of an average "
                "prompt are all wrong"
            )
        return [*sentences, *(f"cannot tell {words}" for words in self.cannot_tell), *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}


def diagnose(log: RunLog, options: DiagnoseOptions) -> Diagnosis:
    """Apply stage two to a log.

    Raises:
        ValueError: a column that was named and is not there, or steps that cannot be compared.

    """
    assert options.temperature is not None
    columns = {what: _column(log, what, getattr(options, what)) for what in _KNOWN}
    last = max(log.steps)
    max_steps = (log.max_steps or last) if options.max_steps is None else options.max_steps
    notes = []
    if options.max_steps is None and log.max_steps is None:
        notes.append(
            f"the log does not say how long the run is: its last step, {last}, is taken for the "
            "end; give --max_steps if it goes on"
        )
    rule = CollapseRule.for_run(
        max_steps,
        tau_2=options.tau_2,
        early_step=options.early_step,
        late_step=options.late_step,
        window=options.window,
    )
    missing = [_missing(log, what) for what, column in columns.items() if column is None]
    degenerate = _series(log, columns["degenerate"], "share")
    until_late = [value for step, value in degenerate if step <= rule.late_step]
    share = math.fsum(until_late) / len(until_late) if until_late else None
    decision = _decide(log, columns["entropy"], rule, options, share)
    if options.temperature != 1.0:
        notes.append(
            f"entropies are those at temperature {options.temperature:g}: tau_2 was found at 1, "
            "and tau_H is about 1 and was not applied"
        )
    if str(columns["degenerate"]).endswith("frac_reward_zero_std"):
        notes.append(
            "trl's frac_reward_zero_std tests the deviation that it divides by: with "
            'scale_rewards="batch" or normalize_then_sum it is 0 whatever the groups are'
        )
    rates = _series(log, columns["pass_rate"], "share")
    ratios: list[float | None] = [None, None]
    if rates and options.group_size is None:
        missing.append("p̂/p*: give --group_size, the rollouts per prompt")
    elif rates and options.group_size is not None:
        early = rule.entropy_at(rates, rule.early_step) or rates[0]
        ratios = [rate / p_star(options.group_size) for rate in (early[1], rates[-1][1])]
    return Diagnosis(
        source=log.source,
        format=log.format,
        first_step=min(log.steps),
        last_step=last,
        max_steps=max_steps,
        temperature=options.temperature,
        early_step=rule.early_step,
        late_step=rule.late_step,
        columns=columns,
        decision=decision,
        degenerate_fraction=share,
        last_degenerate_fraction=degenerate[-1][1] if share is not None else None,
        p_hat_over_p_star=ratios[0],
        last_p_hat_over_p_star=ratios[1],
        cannot_tell=tuple(missing),
        notes=tuple(notes),
    )


def _column(log: RunLog, what: str, named: str | None) -> str | None:
    if named is not None:
        if named not in log.columns:
            raise ValueError(
                f"{log.source} has no column {named!r} (--{what}); it has {', '.join(log.columns)}"
            )
        return named
    known = [before + name for name in _KNOWN[what] for before in ("", "train/")]
    return next((name for name in known if name in log.columns), None)


def _missing(log: RunLog, what: str) -> str:
    known = ", ".join(_KNOWN[what])
    near = [name for name in log.columns if any(part in name for part in _NEAR[what])]
    hint = f"; there are {', '.join(near)}" if near else ""
    return f"{_WORDS[what]}: no column {known}{hint}. Name the one that is it with --{what} COLUMN"


_NEAR = {
    "entropy": ("entropy",),
    "degenerate": ("zero_std", "degenerate", "solve_none", "solve_all"),
    "pass_rate": ("reward", "score", "acc", "pass"),
}


def _series(log: RunLog, column: str | None, unit: str) -> list[tuple[int, float]]:
    """(step, value) of a column, none without one; nats of bits.

    Raises:
        ValueError: a share that is none.

    """
    values = [] if column is None else log.series(column)
    if unit == "share":
        for step, value in values:
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"{log.source}, step {step}: {column} is {value}, and a share lies in [0, 1]; "
                    "name another column"
                )
    factor = math.log(2.0) if unit == "bits" else 1.0
    return [(step, factor * value) for step, value in values]


def _decide(
    log: RunLog,
    column: str | None,
    rule: CollapseRule,
    options: DiagnoseOptions,
    degenerate: float | None,
) -> Decision:
    if column is None:
        return Decision(UNKNOWN, None, None, None, "the log has no entropy")
    readings = _series(log, column, options.entropy_unit)
    last = max(log.steps)
    decision = rule.judge(readings, last)
    if decision.verdict == WAITING:
        drop = rule.drop_at(readings, readings[-1][0])
        so_far = "" if drop is None else f"; at step {readings[-1][0]} it has fallen {drop:.1%}"
        return Decision(
            WAITING,
            drop,
            decision.early,
            None,
            f"{decision.reason}, the log ends at {last}{so_far}",
        )
    if options.temperature == 1.0:
        return began_collapsed(decision, options.tau_h, degenerate)
    return decision
