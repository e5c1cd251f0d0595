"""The answer of an echelon in plain words, made from its numbers and from nothing else."""

from collections.abc import Iterable, Iterator, Mapping

from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.ladder import LadderRow
from entropyfloor.echelon.measure_names import count, outcome_words, title
from entropyfloor.echelon.rank_inversion import RankInversion
from entropyfloor.echelon.rungs import epochs
from entropyfloor.echelon.selection import RECOMMENDED, RuleResult


def answer(comparison: EchelonComparison) -> list[str]:
    """What the echelon says about choosing a checkpoint by pass@1, in plain words."""
    plan = comparison.plan
    main = comparison.inversion(plan.outcome, plan.reference)
    scope = plan.reference
    if main is None and len(plan.losses) > 1:
        main, scope = comparison.inversion(plan.outcome, None), "all losses"
    if main is not None:
        words = [_verdict(main, scope), _counted(main, comparison), _course(comparison)]
        return [*(w for w in words if w), *_rules_in_short(comparison)]
    if plan.grpo_steps:
        first = "No seed has two rungs through RL yet, so their outcomes cannot be compared."
    else:
        first = "No RL was run, so what is said here is about SFT alone."
    return [first, *_course_of_sft(comparison), *_above_tau(comparison)]


def missing_words(comparison: EchelonComparison) -> str:
    """How much is missing; empty if nothing is."""
    number, plan = len(comparison.missing), comparison.plan
    if not number:
        return ""
    cells = len(plan.losses) * len(plan.depths) * len(plan.seeds)
    what = "outcome after RL" if plan.grpo_steps else "screening"
    verb, are = ("has", "is") if number == 1 else ("have", "are")
    who = f"{number} of {count(cells, 'cell')}" if plan.complete else count(number, "cell")
    return f"{who} {verb} no {what} and {are} left out of every comparison of outcomes."


def _verdict(found: RankInversion, scope: str) -> str:
    inverted, seeds = len(found.inverted), len(found.by_seed)
    in_all = "" if seeds == 1 else f", in all {seeds} seeds"
    start = f"With {scope}, the checkpoints that look better before RL"
    if inverted == seeds:
        clear = any(order.clear for order in found.by_seed.values())
        noise = "" if clear else ", though in no pair of them beyond the noise of the prompts"
        return f"{start} mostly end worse after it{in_all}: rank inversion{noise}."
    if inverted:
        return (
            f"{start} mostly end worse after it in {inverted} of {seeds} seeds, and not in the "
            "others: rank inversion in a part of the seeds."
        )
    if all(order.kept == order.turned for order in found.by_seed.values()):
        return f"{start} end neither better nor worse after it{in_all}: no rank inversion."
    return f"{start} do not mostly end worse after it{in_all}: no rank inversion."


def _counted(found: RankInversion, comparison: EchelonComparison) -> str:
    orders, plan = list(found.by_seed.values()), comparison.plan
    kept, turned = sum(o.kept for o in orders), sum(o.turned for o in orders)
    clear = sum(o.clear for o in orders)
    within = (
        f", and in {clear or 'none'} of these by more than other prompts could explain"
        if turned
        else ""
    )
    return (
        "Better before RL is a higher pass@1: a single answer is right more often. Better after it "
        f"is a higher {outcome_words(plan.outcome)}. Of {count(kept + turned, 'pair')} of "
        f"checkpoints, the one that is ahead before RL is behind after it in {turned}{within}."
    )


def _course(comparison: EchelonComparison) -> str:
    plan = comparison.plan
    rows = [r for r in comparison.ladder if r.loss == plan.reference and r.outcomes]
    if len(rows) < 2 or any("pass_at_1" not in row.before for row in rows):
        return ""
    first, last = rows[0], rows[-1]
    seeds = sorted(set(first.outcomes[plan.outcome].by_seed) & seeds_of(last, plan.outcome))
    if not seeds:
        return ""
    many = f", means of {len(seeds)} seeds" if len(seeds) > 1 else ", one seed"
    before = [mean_of(row.before["pass_at_1"].by_seed, seeds) for row in (first, last)]
    after = [mean_of(row.outcomes[plan.outcome].by_seed, seeds) for row in (first, last)]
    joint = "while" if (before[1] > before[0]) != (after[1] > after[0]) else "and"
    return (
        f"From {epochs(first.depth)} of SFT to {last.depth:g}, pass@1 before RL "
        f"{_moved(*before)} {joint} {outcome_words(plan.outcome)} {_moved(*after)}{many}."
    )


def _course_of_sft(comparison: EchelonComparison) -> Iterator[str]:
    rows = [r for r in comparison.ladder if r.loss == comparison.plan.reference]
    if len(rows) < 2:
        return
    first, last = rows[0].before, rows[-1].before
    said = []
    for name in ("pass_at_1", f"pass_at_{comparison.plan.outcome_k}", "entropy_nats"):
        seeds = set(first[name].by_seed) & set(last[name].by_seed) if name in first else set()
        if seeds and name in last:
            ends = [mean_of(course[name].by_seed, seeds) for course in (first, last)]
            said.append(f"{title(name)} {_moved(*ends)}")
    if said:
        yield (
            f"With {comparison.plan.reference}, from {epochs(rows[0].depth)} of SFT to "
            f"{rows[-1].depth:g}: {', '.join(dict.fromkeys(said))}."
        )


def _above_tau(comparison: EchelonComparison) -> Iterator[str]:
    """Which losses keep the deepest rung above tau_H, by seed."""
    plan = comparison.plan
    kinds: dict[str, list[str]] = {"in every seed": [], "in some seeds": [], "in none": []}
    for loss in plan.losses:
        row = comparison.row(loss, plan.depths[-1])
        if row is None or "entropy_nats" not in row.before:
            continue
        entropies = row.before["entropy_nats"].by_seed.values()
        above = sum(entropy >= plan.tau_h for entropy in entropies)
        kind = list(kinds)[0 if above == len(entropies) else 2 if not above else 1]
        kinds[kind].append(loss)
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    if said and len(plan.losses) > 1:
        where = f"at {epochs(plan.depths[-1])} with at least tau_H = {plan.tau_h:g} nats"
        yield f"Checkpoints {where}, {said}."


def _rules_in_short(comparison: EchelonComparison) -> Iterator[str]:
    plan = comparison.plan
    rules = {r.rule: r for r in comparison.rules_of(comparison.plan.scopes[0])}
    highest = rules.get("highest pass@1")
    if highest is None or (lost := highest.regret(plan.outcome)) is None:
        return
    words = (
        f"Starting RL from the checkpoint with the highest pass@1 cost {lost:.3f} of "
        f"{outcome_words(plan.outcome)} against the best checkpoint there was"
    )
    ours = rules.get(RECOMMENDED)
    if ours is not None:
        regret = ours.regret(plan.outcome)
        if regret is None:
            words += "; our recommendation was to start from none"
        else:
            chose = "" if ours.chosen() == len(ours.by_seed) else f" ({chose_words(ours)})"
            words += f"; our recommendation cost {regret:.3f}{chose}"
    yield f"{words}."


def chose_words(rule: RuleResult) -> str:
    """In how many seeds a rule chose."""
    return f"it chose in {rule.chosen()} of {count(len(rule.by_seed), 'seed')}"


def _moved(first: float, last: float) -> str:
    if f"{first:.3f}" == f"{last:.3f}":
        return f"stayed at {last:.3f}"
    return f"{'rose' if last > first else 'fell'} from {first:.3f} to {last:.3f}"


def seeds_of(row: LadderRow, outcome: str) -> set[int]:
    """Seeds in which a rung has that outcome."""
    return set(row.outcomes[outcome].by_seed)


def mean_of(by_seed: Mapping[int, float], seeds: Iterable[int]) -> float:
    """Mean over some of the seeds."""
    values = [by_seed[seed] for seed in seeds]
    return sum(values) / len(values)
