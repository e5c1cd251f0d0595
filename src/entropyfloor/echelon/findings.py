"""An echelon in sentences made from its numbers and from nothing else.

The answer first, then what was compared with what, and what it is worth.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from entropyfloor.echelon.answer import (
    answer,
    chose_words,
    mean_of,
    missing_words,
    seeds_of,
)
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.frontier_report import frontier_findings
from entropyfloor.echelon.ladder import BASE, LadderRow
from entropyfloor.echelon.measure_names import (
    count,
    outcome_words,
    p_text,
    seed_words,
    title,
)
from entropyfloor.echelon.predictors import PredictorRank
from entropyfloor.echelon.rank_inversion import RankInversion
from entropyfloor.echelon.rungs import epochs, rung_name, value
from entropyfloor.echelon.selection import RANDOM


def findings(comparison: EchelonComparison) -> list[str]:
    """Every sentence, the answer first."""
    return [*answer(comparison), *details(comparison)]


def details(comparison: EchelonComparison) -> list[str]:
    """What stands behind the answer, and what it is worth."""
    return [
        *_inversions(comparison),
        *_through_rl(comparison),
        *frontier_findings(comparison),
        *_losses(comparison),
        *_predictors(comparison),
        *_rules(comparison),
        *_caveats(comparison),
    ]


def _inversions(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    wanted = dict.fromkeys([plan.reference, comparison.plan.scopes[0]])
    for scope in wanted:
        found = comparison.inversion(plan.outcome, scope)
        if found is not None:
            yield _pairs(found, comparison)
    others = [
        found
        for outcome in plan.outcomes[1:]
        if (found := comparison.inversion(outcome, plan.reference)) is not None
    ]
    if others:
        said = ", ".join(
            f"{outcome_words(found.outcome)} in {len(found.inverted)} of "
            f"{count(len(found.by_seed), 'seed')}"
            for found in others
        )
        yield f"Rank inversion within {plan.reference} by other outcomes: {said}."


def _through_rl(comparison: EchelonComparison) -> Iterator[str]:
    """What RL did to pass@1 and pass@k themselves, rung by rung."""
    plan = comparison.plan
    done = [rung for rung in comparison.rungs if rung.outcomes]
    said = []
    for k in dict.fromkeys((1, plan.outcome_k)):
        name = f"pass_at_{k}"
        pairs = [
            (before, rung.outcomes[f"peak_{name}"].value)
            for rung in done
            if (before := value(rung.before, name)) is not None
        ]
        if pairs:
            gain = sum(after - before for before, after in pairs) / len(pairs)
            lower = sum(after < before for before, after in pairs)
            said.append(
                f"{title(name)} {gain:+.3f} on average, below its value before RL in {lower} of "
                f"{count(len(pairs), 'rung')}"
            )
    if said:
        yield f"What RL changed, at its peak: {'; '.join(said)}."


def _pairs(found: RankInversion, comparison: EchelonComparison) -> str:
    orders = list(found.by_seed.values())
    turned, clear = sum(o.turned for o in orders), sum(o.clear for o in orders)
    pairs = sum(o.rungs * (o.rungs - 1) // 2 for o in orders)
    where = "over all losses" if found.scope is None else f"within {found.scope}"
    ranks = comparison.ranks_of(found.outcome, found.scope)
    rho = next((r for r in ranks if r.predictor == "pass_at_1"), None)
    words = (
        f"pass@1 against {outcome_words(found.outcome)} {where}: of {count(pairs, 'pair')} of "
        f"rungs {turned} {'is' if turned == 1 else 'are'} turned around, {clear} of them with "
        "95 % intervals over prompts apart on both sides"
    )
    if rho is not None and rho.mean is not None:
        words += f"; {rank_words(rho)}"
    places = ", ".join(f"{o.picked_place} of {o.rungs}" for o in orders)
    apart = sum(o.apart for o in orders)
    return (
        f"{words}. The rung with the highest pass@1 came out at place {places}; its outcome is "
        f"below the best with intervals apart in {apart} of {count(len(orders), 'seed')}."
    )


def rank_words(rank: PredictorRank) -> str:
    """``Spearman −0.80 (−1.00 to −0.40; by seed ...), p = ...``."""
    if rank.mean is None:
        return f"too few rungs for a rank correlation ({rank.points})"
    ends = "" if rank.interval is None else f"{rank.interval.low:+.2f} to {rank.interval.high:+.2f}"
    seeds = seed_words(rank.by_seed.values(), digits=2, sign=True)
    inside = "; ".join(part for part in (ends, f"by seed {seeds}" if seeds else "") if part)
    chance = "" if rank.p_value is None else f", p {p_text(rank.p_value)}"
    return f"Spearman {rank.mean:+.2f}{f' ({inside})' if inside else ''}{chance}"


def _losses(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    done = [r for r in comparison.ladder if r.outcomes and r.loss != BASE]
    if not done:
        return
    # Means over different seeds do not compare: of the largest sets of seeds, the commonest.
    sets = Counter(frozenset(seeds_of(row, plan.outcome)) for row in done)
    wanted = max(sets, key=lambda seeds: (len(seeds), sets[seeds]))
    full = [row for row in done if seeds_of(row, plan.outcome) == wanted]
    best = max(full, key=lambda r: r.outcomes[plan.outcome].mean)
    words = (
        f"Best {outcome_words(plan.outcome)}: {rung_name(best.loss, best.depth)}, "
        f"{best.outcomes[plan.outcome].mean:.3f}"
    )
    own = [r for r in full if r.loss == plan.reference]
    if own and best.loss != plan.reference:
        top = max(own, key=lambda r: r.outcomes[plan.outcome].mean)
        ahead = _ahead(best, top, plan.outcome)
        words += (
            f"; the best of {plan.reference}, {epochs(top.depth)}, reached "
            f"{top.outcomes[plan.outcome].mean:.3f}, and was behind in {ahead[0]} of "
            f"{count(ahead[1], 'seed')}"
        )
    yield f"{words}."
    deepest = [r for r in done if r.loss == plan.reference]
    others = [
        r for r in done if deepest and r.depth == deepest[-1].depth and r.loss != plan.reference
    ]
    if others:
        yield _against(deepest[-1], others, comparison)


def _against(reference: LadderRow, others: Sequence[LadderRow], c: EchelonComparison) -> str:
    """The deepest rungs side by side, by how many seeds agree."""
    outcome = c.plan.outcome
    kinds: dict[str, list[str]] = {"higher in every seed": [], "lower in every seed": []}
    kinds["not alike in all seeds"] = []
    for row in others:
        ahead, shared = _ahead(row, reference, outcome)
        if not shared:
            continue
        seeds = sorted(seeds_of(row, outcome) & seeds_of(reference, outcome))
        gain = mean_of(row.outcomes[outcome].by_seed, seeds) - mean_of(
            reference.outcomes[outcome].by_seed, seeds
        )
        behind = sum(
            row.outcomes[outcome].by_seed[s] < reference.outcomes[outcome].by_seed[s] for s in seeds
        )
        kind = list(kinds)[0 if ahead == shared else 1 if behind == shared else 2]
        kinds[kind].append(f"{row.loss} ({gain:+.3f})")
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    where = f"{reference.loss} at {epochs(reference.depth)}"
    return f"Against {where}, {outcome_words(outcome)} is {said}."


def _predictors(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    for scope in dict.fromkeys([comparison.plan.scopes[0], plan.reference]):
        ranks = [r for r in comparison.ranks_of(plan.outcome, scope) if r.aim is not None]
        if not ranks:
            continue
        ranks.sort(key=lambda r: r.aim or 0.0, reverse=True)
        where = "all losses" if scope is None else str(scope)
        listed = ", ".join(f"{title(r.predictor)} {r.mean:+.2f}" for r in ranks)
        yield (
            f"Over {ranks[0].points} rungs of {where}, rank correlation with "
            f"{outcome_words(plan.outcome)}, mean of the seeds, the best predictor first: {listed}."
        )


def _rules(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    for scope in dict.fromkeys([comparison.plan.scopes[0], plan.reference]):
        rules = [r for r in comparison.rules_of(scope) if r.regret(plan.outcome) is not None]
        if not rules:
            continue
        rules.sort(key=lambda r: r.regret(plan.outcome) or 0.0)
        where = "over all losses" if scope is None else f"within {scope}"
        listed = ", ".join(
            f"{r.rule} {r.regret(plan.outcome):.3f}"
            + ("" if r.rule == RANDOM or r.chosen() == len(r.by_seed) else f" ({chose_words(r)})")
            for r in rules
        )
        yield f"Regret {where}, mean of the seeds, least first: {listed}."


def _caveats(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    done = [r for r in comparison.rungs if r.outcomes]
    if done and len(plan.grpo_steps) > 1:
        last = f"last_pass_at_{plan.outcome_k}"
        gaps = [r.outcomes[plan.outcome].value - r.outcomes[last].value for r in done]
        yield (
            f"The peak is the best of {len(plan.grpo_steps)} evaluations on the problems that it "
            f"is reported on, so it is optimistic: by {sum(gaps) / len(gaps):.3f} on average above "
            f"the last step."
        )
    seeds = len({r.seed for r in comparison.rungs})
    if seeds == 1:
        yield "One seed: nothing here says how much another seed would differ."
    elif 1 < seeds < 5:
        yield f"{seeds} seeds: intervals over seeds are wide, and no more than that is known."
    if words := missing_words(comparison):
        yield words


def _ahead(row: LadderRow, reference: LadderRow, outcome: str) -> tuple[int, int]:
    """Seeds in which a row is ahead, and seeds that both have."""
    mine, theirs = row.outcomes[outcome].by_seed, reference.outcomes[outcome].by_seed
    shared = set(mine) & set(theirs)
    return sum(mine[s] > theirs[s] for s in shared), len(shared)
