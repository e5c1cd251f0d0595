"""What each rule would have started RL from, what that got, and how much was left on the table.

A rule sees what is known before RL and nothing else. Its regret in a seed is the best outcome of
the rungs it could choose from, less the outcome of the one it chose. Only rungs with an outcome
take part, so that the best is known.

Where a rule cannot tell rungs apart, the higher pass@1 decides, then the shallower rung, then the
order of the losses. "One at random" is the mean over the rungs: what a rule has to beat.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from entropyfloor.echelon.rungs import Plan, Rung, through_rl, value
from entropyfloor.screening.conclude import recommend
from entropyfloor.screening.report import CheckpointScreening

RANDOM = "one at random"
RECOMMENDED = "our recommendation"


@dataclass(frozen=True)
class Pick:
    """What a rule chose in one seed."""

    loss: str | None  # None where it chose no single rung
    depth: float | None  # epochs
    reason: str  # in words, where the rule gives any
    outcomes: Mapping[str, float]  # what it got; empty where the rule advises against every rung
    best: Mapping[str, float]  # the best there was, by outcome

    def regret(self, outcome: str) -> float | None:
        """The best less what it got."""
        got = self.outcomes.get(outcome)
        return None if got is None else self.best[outcome] - got


@dataclass(frozen=True)
class RuleResult:
    """One rule over one scope (a loss, or None for all), seed by seed."""

    rule: str
    scope: str | None
    by_seed: Mapping[int, Pick]

    def mean(self, outcome: str) -> float | None:
        """Mean outcome over the seeds in which it chose."""
        return _mean([pick.outcomes.get(outcome) for pick in self.by_seed.values()])

    def regret(self, outcome: str) -> float | None:
        """Mean regret over the seeds in which it chose."""
        return _mean([pick.regret(outcome) for pick in self.by_seed.values()])

    def chosen(self) -> int:
        """Seeds in which it chose."""
        return sum(bool(pick.outcomes) for pick in self.by_seed.values())


def rule_results(rungs: Sequence[Rung], plan: Plan) -> tuple[RuleResult, ...]:
    """Every rule that has what it needs, over all losses and within each."""
    results = []
    for scope in plan.scopes:
        seeds = {
            seed: sorted(here, key=lambda rung: rung.depth)
            for seed, here in sorted(through_rl(rungs, scope).items())
        }
        every = [rung for here in seeds.values() for rung in here]
        for rule, (needed, choose) in _rules(plan).items():
            if every and all(value(rung.before, needed) is not None for rung in every):
                picks = {seed: _pick(choose(here), here, plan) for seed, here in seeds.items()}
                results.append(RuleResult(rule, scope, picks))
        if every:
            by_chance = {seed: _random(here, plan) for seed, here in seeds.items()}
            results.append(RuleResult(RANDOM, scope, by_chance))
    return tuple(results)


_Choice = tuple[Rung | None, str]
_Rule = tuple[str, Callable[[Sequence[Rung]], _Choice]]


def _rules(plan: Plan) -> dict[str, _Rule]:
    """Rule -> the measure it needs, and a function of the rungs of a seed, shallowest first."""

    def most(measure: str, sign: float = 1.0) -> _Rule:
        return measure, lambda rungs: _most(rungs, measure, sign)

    return {
        RECOMMENDED: ("entropy_nats", _recommended),
        "highest pass@1": most("pass_at_1"),
        f"highest pass@{plan.outcome_k}": most(f"pass_at_{plan.outcome_k}"),
        "lowest degenerate fraction": most("degenerate_fraction", -1.0),
        "highest entropy": most("entropy_nats"),
        f"deepest above {plan.tau_h:g} nats": (
            "entropy_nats",
            lambda rungs: _deepest(rungs, plan.tau_h),
        ),
        "lowest held-out loss": most("held_out_loss", -1.0),
    }


def _most(rungs: Sequence[Rung], measure: str, sign: float = 1.0) -> _Choice:
    def order(rung: Rung) -> tuple[float, float]:
        return sign * (value(rung.before, measure) or 0.0), value(rung.before, "pass_at_1") or 0.0

    return max(rungs, key=order), ""


def _deepest(rungs: Sequence[Rung], floor: float) -> _Choice:
    above = [r for r in rungs if (value(r.before, "entropy_nats") or 0.0) >= floor]
    if not above:
        return None, f"no rung has {floor:g} nats"
    deepest = [rung for rung in above if rung.depth == above[-1].depth]
    return _most(deepest, "pass_at_1")


def _recommended(rungs: Sequence[Rung]) -> _Choice:
    """What screening advises; it may advise against all of them."""
    named = {rung.name: rung for rung in rungs}
    advice = recommend([_screened(rung) for rung in rungs])
    return (None if advice.name is None else named[advice.name]), advice.reason


def _screened(rung: Rung) -> CheckpointScreening:
    """The rung's measures as the record that screening's own rule reads."""
    counts = {"num_prompts": 0, "num_rollouts": 0, "mean_tokens": 0.0}  # no part of the advice
    return CheckpointScreening.from_dict(
        {
            "unique_fraction": 0.0,
            "truncated_fraction": 0.0,
            "intervals": {},
            **counts,
            **rung.before,
            "name": rung.name,
            "path": rung.name,
        }
    )


def _pick(choice: _Choice, rungs: Sequence[Rung], plan: Plan) -> Pick:
    rung, reason = choice
    best = _best(rungs, plan)
    if rung is None:
        return Pick(None, None, reason, {}, best)
    got = {name: outcome.value for name, outcome in rung.outcomes.items()}
    return Pick(rung.loss, rung.depth, reason, got, best)


def _random(rungs: Sequence[Rung], plan: Plan) -> Pick:
    got = {o: sum(r.outcomes[o].value for r in rungs) / len(rungs) for o in plan.outcomes}
    return Pick(None, None, f"mean of {len(rungs)}", got, _best(rungs, plan))


def _best(rungs: Sequence[Rung], plan: Plan) -> dict[str, float]:
    return {o: max(r.outcomes[o].value for r in rungs) for o in plan.outcomes}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [number for number in values if number is not None]
    return sum(known) / len(known) if known else None
