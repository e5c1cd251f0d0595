"""The cells of an echelon as rungs: what was measured before RL, and what came of it.

    rung                 one (loss, seed, depth): a checkpoint of SFT
    before               its measures as screened
    after                GRPO step -> measures
    outcome              peak pass@k: the best over the evaluated steps, which is optimistic, as the
                         best of several noisy numbers is; last pass@k: at the last step

A rung has an outcome when every step that the plan names was evaluated. A peak over fewer steps
than the others had would be too low, so a rung that is not through is named as missing and left
out of whatever compares outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from entropyfloor.stats.intervals import Interval

if TYPE_CHECKING:
    from entropyfloor.screening.report import CheckpointScreening

# What a screening leaves of a checkpoint: one number (or word) each, and beside them "pass_at_k"
# and "intervals" (95 %, over prompts), as plain data that went through JSON.
Metrics = Mapping[str, Any]
METRICS = (
    "entropy_nats",
    "pass_at_1",
    "degenerate_fraction",
    "degenerate_all_wrong",
    "degenerate_all_right",
    "p_hat_over_p_star",
    "unique_fraction",
    "held_out_loss",
    "truncated_fraction",
    "verdict",
)


_TITLES = {
    "entropy_nats": "entropy",
    "degenerate_fraction": "degenerate fraction",
    "p_hat_over_p_star": "p̂/p*",
    "unique_fraction": "unique",
    "held_out_loss": "held-out loss",
}


def metrics(checkpoint: CheckpointScreening) -> dict[str, Any]:
    """`METRICS` as far as they were measured, ``pass_at_k`` and their 95 % ``intervals``."""
    document = checkpoint.to_dict()
    kept = {key: document[key] for key in (*METRICS, "intervals") if key in document}
    if checkpoint.kl_to_base is not None:
        kept["kl_to_base"] = checkpoint.kl_to_base
    kept["pass_at_k"] = {str(k): value for k, value in document["pass_at_k"].items()}
    return kept


@dataclass(frozen=True)
class Outcome:
    """A pass@k after RL, the GRPO step it is from, and its 95 % interval over prompts."""

    value: float
    step: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Rung:
    """One finished or half finished cell."""

    loss: str  # the arm's name in the recipe
    seed: int  # of the run
    depth: float  # epochs of SFT
    before: Metrics  # measures before RL
    # GRPO step -> measures, by ascending step
    after: Mapping[int, Metrics] = field(default_factory=dict)
    # peak_pass_at_K and the like; empty while steps are missing
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0  # that its screening and its RL took

    @property
    def name(self) -> str:
        """``loss, depth``: what it is called inside its seed."""
        return rung_name(self.loss, self.depth)

    @property
    def last(self) -> Metrics | None:
        """Measures at the last evaluated step."""
        return self.after[max(self.after)] if self.after else None


@dataclass(frozen=True)
class Missing:
    """A cell of the plan that has no outcome, and why."""

    loss: str
    seed: int
    depth: float
    why: str


@dataclass(frozen=True)
class Plan:
    """What the cells are compared under."""

    name: str  # the recipe's
    outcome_k: int  # k of the pass@k after RL that counts as the outcome
    group_size: int  # rollouts per prompt in RL
    tau_h: float  # nats; a rung below it is flagged by its entropy
    losses: tuple[str, ...]  # arms in the recipe's order
    depths: tuple[float, ...]  # epochs, ascending
    seeds: tuple[int, ...]
    grpo_steps: tuple[int, ...]  # steps after which RL is evaluated; empty without RL

    @property
    def reference(self) -> str:
        """The arm that the others are compared with: ``ce`` if it is there, else the first."""
        return "ce" if "ce" in self.losses else self.losses[0]

    @property
    def outcome(self) -> str:
        """The measure that rungs are judged by."""
        return f"peak_pass_at_{self.outcome_k}"

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Every outcome, the one that counts first."""
        names = [f"{when}_pass_at_{k}" for k in (self.outcome_k, 1) for when in ("peak", "last")]
        return tuple(dict.fromkeys(names))

    @property
    def scopes(self) -> tuple[str | None, ...]:
        """What rungs are compared within: all losses (None), then each; the only loss by itself."""
        return (None, *self.losses) if len(self.losses) > 1 else self.losses

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is followed along the ladder, in reading order."""
        names = ("entropy_nats", "pass_at_1", f"pass_at_{self.outcome_k}", "degenerate_fraction")
        return tuple(dict.fromkeys((*names, "unique_fraction", "held_out_loss")))


def rung_name(loss: str, depth: float) -> str:
    """``ce, 2 epochs``."""
    return f"{loss}, {epochs(depth)}"


def epochs(depth: float) -> str:
    """``1 epoch``, ``2.9 epochs``."""
    return f"{depth:g} epoch{'' if depth == 1 else 's'}"


def title(measure: str) -> str:
    """``pass_at_10`` -> ``pass@10``; ``peak_pass_at_10`` -> ``peak pass@10``."""
    when, _, k = measure.rpartition("pass_at_")
    return f"{when.replace('_', ' ')}pass@{k}" if k.isdecimal() else _TITLES[measure]


def outcome_words(outcome: str) -> str:
    """``peak_pass_at_10`` -> ``peak pass@10 after RL``."""
    return f"{title(outcome)} after RL"


def count(number: int, what: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def seed_words(values: Iterable[float | None], form: str = ".3f") -> str:
    """The numbers of up to five seeds, a dash for what is missing, or the range of more.

    Without the zero before the point, so that three seeds fit into a cell; nothing for one seed.
    """
    every = list(values)
    known = [number for number in every if number is not None]
    if len(every) < 2 or not known:
        return ""
    if len(every) <= 5:
        return " ".join("–" if n is None else short_number(f"{n:{form}}") for n in every)
    return f"{short_number(f'{min(known):{form}}')} – {short_number(f'{max(known):{form}}')}"


def short_number(number: str) -> str:
    """``+0.140`` -> ``+.140``."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number


def value(metrics: Metrics | None, name: str) -> float | None:
    """A measure by name, ``pass_at_10`` for k = 10; None where it was not measured."""
    if metrics is None:
        return None
    metric = metrics.get(name)
    if metric is None and name.startswith("pass_at_"):
        metric = metrics.get("pass_at_k", {}).get(name.removeprefix("pass_at_"))
    return None if metric is None else float(metric)


def interval(metrics: Metrics, name: str) -> Interval | None:
    """A measure's 95 % interval over prompts."""
    bounds = metrics.get("intervals", {}).get(name)
    return None if bounds is None else Interval(*bounds)


def through_rl(rungs: Sequence[Rung], scope: str | None) -> dict[int, list[Rung]]:
    """Rungs that have an outcome, of one loss or of all (None), by seed."""
    by_seed: dict[int, list[Rung]] = {}
    for rung in rungs:
        if rung.outcomes and scope in (None, rung.loss):
            by_seed.setdefault(rung.seed, []).append(rung)
    return by_seed


def read_rungs(
    cells: Sequence[Mapping[str, Any]], plan: Plan
) -> tuple[tuple[Rung, ...], tuple[Missing, ...]]:
    """Rungs by loss, depth and seed in the plan's order, and what is missing of the plan."""
    by_key = {(c["loss"], float(c["depth"]), int(c["seed"])): c for c in cells}
    rungs, missing = [], []
    for loss, depth, seed in product(plan.losses, plan.depths, plan.seeds):
        cell = by_key.get((loss, depth, seed))
        if cell is None:
            missing.append(Missing(loss, seed, depth, "not there yet"))
            continue
        after = {int(step): metrics for step, metrics in cell.get("after", {}).items()}
        absent = [str(step) for step in plan.grpo_steps if step not in after]
        if absent:
            why = f"GRPO not evaluated at step {', '.join(absent)}"
            missing.append(Missing(loss, seed, depth, why))
        rungs.append(
            Rung(
                loss=loss,
                seed=seed,
                depth=depth,
                before=cell["before"],
                after=dict(sorted(after.items())),
                outcomes={} if absent else _outcomes(after, plan),
                seconds=float(sum(cell.get("seconds", {}).values())),
            )
        )
    return tuple(rungs), tuple(missing)


def _outcomes(after: Mapping[int, Metrics], plan: Plan) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for name in plan.outcomes if plan.grpo_steps else ():
        metric = name.split("_", 1)[1]
        k = metric.removeprefix("pass_at_")
        steps = plan.grpo_steps if name.startswith("peak") else plan.grpo_steps[-1:]
        # pass@1 is always measured, also where it is not among the recipe's ks.
        rates = {s: {"1": after[s].get("pass_at_1"), **after[s]["pass_at_k"]} for s in steps}
        values = {step: rates[step][k] for step in steps}
        best = max(steps, key=values.__getitem__)  # the first of equals
        outcomes[name] = Outcome(values[best], best, interval(after[best], metric))
    return outcomes
