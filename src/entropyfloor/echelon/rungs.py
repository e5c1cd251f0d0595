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

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from entropyfloor.screening.verdict import TAU_H, check_tau_h
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
    seconds: float | None = None  # that it took; None where it was not recorded

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

    outcome_k: int  # k of the pass@k after RL that counts as the outcome
    group_size: int  # rollouts per prompt in RL
    tau_h: float  # nats; a rung below it is flagged by its entropy
    floor: float  # nats; what "deepest above the floor" asks for. tau_h when left out.
    reference: str  # the arm that the others are compared with. ce if there, else the first.
    losses: tuple[str, ...]  # arms in the recipe's order; those of the cells when left out
    depths: tuple[float, ...]  # epochs, ascending; those of the cells when left out
    seeds: tuple[int, ...]  # ascending; those of the cells when left out
    # Steps after which RL is evaluated; those of the cells when left out
    grpo_steps: tuple[int, ...]
    complete: bool  # losses, depths and seeds were all named, so every combination is expected

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


def make_plan(cells: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Plan:
    """Complete the settings by what the cells show.

    Raises:
        ValueError: ``outcome_k`` or ``group_size`` is missing, or one is out of range.

    """
    for key in ("outcome_k", "group_size"):
        number = settings.get(key)
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"settings[{key!r}] must be a whole number from 1 on; got {number!r}: pass the k "
                "of the pass@k after RL, and the rollouts per prompt in RL"
            )
    tau_h = float(settings.get("tau_h", TAU_H))
    floor = settings.get("floor")
    check_tau_h(tau_h)
    losses = tuple(settings.get("losses") or dict.fromkeys(cell["loss"] for cell in cells))
    reference = settings.get("reference") or ("ce" if "ce" in losses else "")
    if reference and reference not in losses:
        raise ValueError(f"reference is {reference!r}, which is none of {', '.join(losses)}")
    steps = settings.get("grpo_steps") or {s for c in cells for s in c.get("after") or {}}
    return Plan(
        outcome_k=settings["outcome_k"],
        group_size=settings["group_size"],
        tau_h=tau_h,
        floor=tau_h if floor is None else float(floor),
        reference=reference or (losses[0] if losses else ""),
        losses=losses,
        depths=_ascending(float, settings.get("depths") or (c["depth"] for c in cells)),
        seeds=_ascending(int, settings.get("seeds") or (c["seed"] for c in cells)),
        grpo_steps=_ascending(int, steps),
        complete=all(settings.get(key) for key in ("losses", "depths", "seeds")),
    )


def read_rungs(
    cells: Sequence[Mapping[str, Any]], plan: Plan
) -> tuple[tuple[Rung, ...], tuple[Missing, ...]]:
    """Rungs by loss, depth and seed in the plan's order, and what is missing of the plan.

    A cell whose ``before`` is None or absent counts as missing; ``failed`` says why.

    Raises:
        ValueError: a cell twice, one that the plan does not name, or a number that is not finite.

    """
    rungs: dict[tuple[str, float, int], Rung] = {}
    why: dict[tuple[str, float, int], str] = {}
    for cell in cells:
        key = (cell["loss"], float(cell["depth"]), int(cell["seed"]))
        where = f"{rung_name(key[0], key[1])}, seed {key[2]}"
        if key in rungs or key in why:
            raise ValueError(f"{where} is there twice: hand over one cell of each")
        if key[0] not in plan.losses or key[1] not in plan.depths or key[2] not in plan.seeds:
            raise ValueError(f"{where} is not in the plan: name its loss, depth and seed there")
        failed = cell.get("failed")
        if not cell.get("before"):
            why[key] = f"failed: {failed}" if failed else "not screened yet"
            continue
        rungs[key] = _rung(cell, plan, where)
        if plan.grpo_steps and not rungs[key].outcomes:
            absent = [str(s) for s in plan.grpo_steps if s not in rungs[key].after]
            words = f"GRPO not evaluated at step {', '.join(absent)}"
            why[key] = f"failed: {failed}; {words}" if failed else words
    order = [(a, d, s) for a in plan.losses for d in plan.depths for s in plan.seeds]
    if plan.complete:
        why |= {key: "not there yet" for key in order if key not in rungs and key not in why}
    missing = [Missing(a, s, d, why[a, d, s]) for a, d, s in order if (a, d, s) in why]
    return tuple(rungs[key] for key in order if key in rungs), tuple(missing)


def _rung(cell: Mapping[str, Any], plan: Plan, where: str) -> Rung:
    after = {int(step): cell["after"][step] for step in cell.get("after") or {}}
    after = dict(sorted(after.items()))
    _check(cell["before"], f"{where}, before RL")
    for step, metrics in after.items():
        _check(metrics, f"{where}, GRPO step {step}")
    seconds = cell.get("seconds")
    if isinstance(seconds, Mapping):
        seconds = sum(seconds.values())
    return Rung(
        loss=cell["loss"],
        seed=int(cell["seed"]),
        depth=float(cell["depth"]),
        before=cell["before"],
        after=after,
        outcomes=_outcomes(after, plan, where),
        seconds=None if seconds is None else float(seconds),
    )


def _outcomes(after: Mapping[int, Metrics], plan: Plan, where: str) -> dict[str, Outcome]:
    if not plan.grpo_steps or any(step not in after for step in plan.grpo_steps):
        return {}
    outcomes: dict[str, Outcome] = {}
    for name in plan.outcomes:
        measure = name.split("_", 1)[1]
        steps = plan.grpo_steps if name.startswith("peak") else plan.grpo_steps[-1:]
        values = {step: value(after[step], measure) for step in steps}
        if None in values.values():
            ks = ", ".join(after[plan.grpo_steps[0]].get("pass_at_k", {})) or "none"
            raise ValueError(
                f"{where}: no {measure} after RL (pass@k was measured for k = {ks}): choose "
                "outcome_k among them, or evaluate with more samples"
            )
        best = max(steps, key=lambda step: values[step] or 0.0)  # the first of equals
        outcomes[name] = Outcome(float(values[best] or 0.0), best, interval(after[best], measure))
    return outcomes


def _check(metrics: Metrics, where: str) -> None:
    for name, number in [*metrics.items(), *metrics.get("pass_at_k", {}).items()]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{where}: {name} is {number}, not a number to compare: measure again")


def _ascending(kind: Any, values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted({kind(item) for item in values}))
