"""Rungs beside each other on the same held-out problems: what a loss gains, and what RL does.

    to the reference   a loss less the reference loss at the same depth, before RL and after it
    through RL         a rung after its last GRPO step less the same rung before
    along depth        the deepest rung of a loss less its shallowest, before RL and after it

All rungs of a seed answer the same problems, so differences are taken problem by problem, and the
problems of all seeds are pooled, each a problem of its own. The interval draws problems again: it
says how sure a difference is between *these* runs. How much other runs would differ is seen from
the seeds, whose own differences stand beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from entropyfloor.echelon.rungs import Metrics, Plan, Rung, epochs
from entropyfloor.io import restore
from entropyfloor.screening.paired import Difference, PromptResults, metric_differences


@dataclass(frozen=True)
class RungPair:
    """One comparison of two states of rungs, over the seeds that have both."""

    loss: str  # the rung's
    depth: float  # epochs
    contrast: str  # as `to_reference` or `along_depth` words it, or "through RL"
    differences: tuple[Difference, ...]  # over the problems of all seeds
    by_seed: Mapping[int, Mapping[str, float]]  # seed -> metric -> difference

    def difference(self, metric: str) -> Difference | None:
        """Of one metric; None where it was not measured."""
        return next((d for d in self.differences if d.metric == metric), None)


def rung_pairs(rungs: Sequence[Rung], plan: Plan) -> tuple[RungPair, ...]:
    """Every comparison that at least one seed has both sides of, by loss and depth."""
    by_place: dict[tuple[str, float], dict[int, Rung]] = {}
    for rung in rungs:
        by_place.setdefault((rung.loss, rung.depth), {})[rung.seed] = rung
    pairs = []
    for (loss, depth), of_seeds in by_place.items():
        reference = by_place.get((plan.reference, depth), {})
        deepest = plan.depths[0] < depth == plan.depths[-1]
        shallowest = by_place.get((loss, plan.depths[0]), {}) if deepest else {}
        for contrast, sides in _contrasts(loss, of_seeds, reference, shallowest, plan):
            measured = {
                seed: (first, second)
                for seed, (first, second) in sides.items()
                if first is not None and second is not None
            }
            if measured:
                pairs.append(_pair(loss, depth, contrast, measured, plan))
    return tuple(pairs)


def to_reference(reference: str, when: str) -> str:
    """The contrast of a loss with the reference, ``before`` or ``after`` RL."""
    return f"to {reference} {when} RL"


def along_depth(shallowest: float, when: str) -> str:
    """The contrast of the deepest rung with the shallowest, ``before`` or ``after`` RL."""
    return f"to {epochs(shallowest)} {when} RL"


_Sides = dict[int, tuple[PromptResults | None, PromptResults | None]]


def _contrasts(
    loss: str,
    of_seeds: Mapping[int, Rung],
    reference: Mapping[int, Rung],
    shallowest: Mapping[int, Rung],
    plan: Plan,
) -> Iterator[tuple[str, _Sides]]:
    """What is compared, and both sides of each seed."""
    others = [(partial(along_depth, plan.depths[0]), shallowest)]
    if loss != plan.reference:
        others.insert(0, (partial(to_reference, plan.reference), reference))
    for words, firsts in others:
        both = {s: (firsts[s], rung) for s, rung in of_seeds.items() if s in firsts}
        for when, state in (("before", _before), ("after", _after)):
            sides = {seed: (state(first), state(rung)) for seed, (first, rung) in both.items()}
            yield words(when), sides
    yield "through RL", {seed: (_before(rung), _after(rung)) for seed, rung in of_seeds.items()}


def _before(rung: Rung) -> PromptResults | None:
    return _results(rung.before)


def _after(rung: Rung) -> PromptResults | None:
    """At the last step, if every step was evaluated: others' last step compares to nothing."""
    return _results(rung.last) if rung.outcomes else None


def _results(metrics: Metrics | None) -> PromptResults | None:
    """None for cells that were written before they had them."""
    content = (metrics or {}).get("prompt_results")
    return None if content is None else restore(PromptResults, content)


def _pair(
    loss: str,
    depth: float,
    contrast: str,
    measured: Mapping[int, tuple[PromptResults, PromptResults]],
    plan: Plan,
) -> RungPair:
    differences = partial(metric_differences, group_size=plan.group_size, ks=[plan.outcome_k])
    by_seed = {
        seed: {d.metric: d.difference for d in differences(*sides)}
        for seed, sides in sorted(measured.items())
    }
    pooled = (_pooled(side) for side in zip(*measured.values(), strict=True))
    return RungPair(loss, depth, contrast, differences(*pooled), by_seed)


def _pooled(results: Sequence[PromptResults]) -> PromptResults:
    """Of several seeds, whose problems are numbered through."""
    count = sum(len(one.prompt_indices) for one in results)
    return PromptResults(
        prompt_indices=tuple(range(count)),
        num_samples=tuple(chain(*(one.num_samples for one in results))),
        num_tokens=tuple(chain(*(one.num_tokens for one in results))),
        entropy_sums=tuple(chain(*(one.entropy_sums for one in results))),
        num_passed=tuple(chain(*(one.num_passed for one in results))),
    )
