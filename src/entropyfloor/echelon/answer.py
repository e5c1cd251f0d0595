"""The answer of an echelon: at most seven sentences, made from its numbers alone."""

from entropyfloor.echelon.compare import EchelonComparison, Spread, frontier_metrics
from entropyfloor.echelon.paired import to_reference
from entropyfloor.echelon.predictors import RankInversion
from entropyfloor.echelon.rungs import count, epochs, outcome_words, title
from entropyfloor.echelon.selection import RANDOM, RECOMMENDED


def answer(comparison: EchelonComparison) -> list[str]:
    """Rank inversion, what depth does, who ends ahead, who holds the floor, what choosing costs."""
    sentences = (
        _rank_inversion(comparison),
        _along_depth(comparison),
        _against_reference(comparison),
        _above_tau_h(comparison),
        _regret(comparison),
        _frontier(comparison),
        _missing(comparison),
    )
    return [words for words in sentences if words]


def _rank_inversion(comparison: EchelonComparison) -> str:
    plan = comparison.plan
    if not plan.grpo_steps:
        return "No RL was run, so what is said here is about SFT alone."
    for scope in (plan.reference, plan.scopes[0]):
        if (inversion := comparison.inversion(plan.outcome, scope)) is not None:
            return _verdict(inversion, scope or "all losses")
    return "No seed has two rungs through RL yet, so their outcomes cannot be compared."


def _verdict(inversion: RankInversion, scope: str) -> str:
    inverted, seeds = len(inversion.inverted), len(inversion.by_seed)
    where = "" if seeds == 1 else f" in all {seeds} seeds"
    if inverted == seeds:
        verdict = f"mostly end worse after it{where}: rank inversion"
    elif inverted:
        verdict = (
            f"mostly end worse after it in {inverted} of {seeds} seeds: rank inversion in part"
        )
    elif 2 * inversion.turned == inversion.pairs:
        verdict = "end neither better nor worse after it: no rank inversion"
    else:
        verdict = "do not mostly end worse after it: no rank inversion"
    clear = f", {inversion.clear or 'none'} by more than other prompts could explain"
    return (
        f"With {scope}, checkpoints that are ahead in pass@1 before RL {verdict} by "
        f"{title(inversion.outcome)} (of {count(inversion.pairs, 'pair')} {inversion.turned} "
        f"turned around{clear if inversion.turned else ''})."
    )


def _along_depth(comparison: EchelonComparison) -> str:
    """From the shallowest to the deepest rung of the reference."""
    plan = comparison.plan
    rows = [row for row in comparison.ladder if row.loss == plan.reference]
    through = [row for row in rows if row.outcomes]
    metrics = dict.fromkeys(("pass_at_1", f"pass_at_{plan.outcome_k}", "entropy_nats"))
    if len(through) > 1:
        rows = through
        before, after = rows[0].before.get("pass_at_1"), rows[-1].before.get("pass_at_1")
        ends = (rows[0].outcomes[plan.outcome], rows[-1].outcomes[plan.outcome])
        shown = [("pass@1 before RL", before, after), (outcome_words(plan.outcome), *ends)]
    elif len(rows) > 1:
        shown = [(title(m), rows[0].before.get(m), rows[-1].before.get(m)) for m in metrics]
    else:
        return ""
    moves = [
        f"{name} {_moved(first, last)}"
        for name, first, last in shown
        if first and last and first.by_seed.keys() & last.by_seed.keys()
    ]
    depths = f"from {epochs(rows[0].depth)} of SFT to {rows[-1].depth:g}"
    seeds = "one seed" if len(plan.seeds) == 1 else f"means of {len(plan.seeds)} seeds"
    return f"With {plan.reference}, {depths}: {', '.join(moves)} ({seeds})." if moves else ""


def _moved(first: Spread, last: Spread) -> str:
    """In the mean of the seeds that both have: means of other seeds do not compare."""
    seeds = sorted(first.by_seed.keys() & last.by_seed.keys())
    start, end = (sum(side.by_seed[s] for s in seeds) / len(seeds) for side in (first, last))
    if f"{start:.3f}" == f"{end:.3f}":
        return f"stayed at {end:.3f}"
    return f"{'rose' if end > start else 'fell'} from {start:.3f} to {end:.3f}"


def _against_reference(comparison: EchelonComparison) -> str:
    """What the other losses end ahead of the reference, at the deepest rungs, and pay for it."""
    plan, metric = comparison.plan, f"pass_at_{comparison.plan.outcome_k}"
    before, after = (to_reference(plan.reference, when) for when in ("before", "after"))
    depth = max((pair.depth for pair in comparison.pairs if pair.contrast == after), default=0.0)
    gains: dict[str, float] = {}
    for pair in comparison.pairs:
        if (pair.depth, pair.contrast) != (depth, after):
            continue
        gain = pair.difference(metric)
        if gain is None:
            continue
        start = comparison.pair(pair.loss, depth, before)
        beside = []
        if gain.interval is not None:
            beside.append("95 % {:+.3f} to {:+.3f}".format(*gain.interval))
        if start is not None and (cost := start.difference("pass_at_1")) is not None:
            beside.append(f"pass@1 before RL {cost.difference:+.3f}")
        gains[f"{pair.loss} {gain.difference:+.3f} ({'; '.join(beside)})"] = gain.difference
    if not gains:
        return ""
    less = f"last {title(metric)} after RL, less that of {plan.reference}"
    listed = ", ".join(sorted(gains, key=gains.__getitem__, reverse=True))
    return f"From {epochs(depth)} of SFT, {less}, problem by problem: {listed}."


def _above_tau_h(comparison: EchelonComparison) -> str:
    """Which losses keep the deepest rung above tau_H."""
    plan = comparison.plan
    kinds: dict[str, list[str]] = {"in every seed": [], "in some seeds": [], "in none": []}
    for loss in plan.losses:
        row = comparison.row(loss, plan.depths[-1])
        if row is not None and "entropy_nats" in row.before:
            entropies = row.before["entropy_nats"].by_seed.values()
            above = sum(entropy >= plan.tau_h for entropy in entropies)
            kind = list(kinds)[0 if above == len(entropies) else 1 if above else 2]
            kinds[kind].append(loss)
    held = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    where = f"at {epochs(plan.depths[-1])} with at least tau_H = {plan.tau_h:g} nats"
    return f"Checkpoints {where}, {held}." if held and len(plan.losses) > 1 else ""


def _regret(comparison: EchelonComparison) -> str:
    plan = comparison.plan
    rules = {rule.rule: rule for rule in comparison.rules_of(plan.scopes[0])}
    costs = []
    for name in ("highest pass@1", RECOMMENDED, RANDOM):
        if (rule := rules.get(name)) is not None:
            regret, seeds = rule.regret(plan.outcome), len(rule.by_seed)
            cost = "advises against all" if regret is None else f"{regret:.3f}"
            chose = "" if rule.chosen() in (0, seeds) else f" ({rule.chosen()} of {seeds} seeds)"
            costs.append(f"{name} {cost}{chose}")
    against = f"What a choice of the checkpoint costs in {outcome_words(plan.outcome)}"
    return f"{against}, against the best there was: {', '.join(costs)}." if costs else ""


def frontier_words(comparison: EchelonComparison) -> str:
    """``at least its entropy, pass@1 and pass@8 and at most its degenerate fraction``."""
    metrics = frontier_metrics(comparison.ladder, comparison.plan)
    more = [title(name) for name, sign in metrics.items() if sign > 0]
    less = [title(name) for name, sign in metrics.items() if sign < 0]
    words = " and ".join([", ".join(more[:-1]), more[-1]] if len(more) > 1 else more)
    return f"at least its {words}" + "".join(f" and at most its {name}" for name in less)


def _frontier(comparison: EchelonComparison) -> str:
    """Which rungs nothing beats, and which losses are beaten at every depth."""
    there: dict[str, list[str]] = {rung.loss: [] for rung in comparison.frontier}
    for rung in comparison.frontier:
        if not rung.beaten_by:
            there[rung.loss].append(f"{rung.depth:g}")
    if not there:
        return ""
    listed = "; ".join(f"{loss} at {', '.join(at)}" for loss, at in there.items() if at)
    beaten = [loss for loss, at in there.items() if not at]
    return (
        f"Before RL nothing beats {sum(map(len, there.values()))} of "
        f"{count(len(comparison.frontier), 'rung')}, with {frontier_words(comparison)}: {listed} "
        f"(epochs){'; beaten at every depth: ' + ', '.join(beaten) if beaten else ''}."
    )


def _missing(comparison: EchelonComparison) -> str:
    plan, number = comparison.plan, len(comparison.missing)
    if not number:
        return ""
    cells = len(plan.losses) * len(plan.depths) * len(plan.seeds)
    what = "outcome after RL" if plan.grpo_steps else "screening"
    who = f"{number} of {count(cells, 'cell')}"
    return f"{who} without {what}: left out of every comparison of outcomes."
