"""Which checkpoint to start RL from, beside what "highest pass@1" would have picked.

Only checkpoints that are not flagged can be recommended; ``ready`` goes before ``undecided``.
Among them, in this order of what is known:

    degenerate fraction   the lowest: it ordered outcomes best in METHODS.md, section 6
    held-out loss         the lowest
    neither               the last in the order given: the deepest that still clears tau_H. Highest
                          entropy would be the untrained model.

Predictors that would choose another checkpoint are named.
"""

from collections.abc import Sequence

from entropyfloor.screening.records import Recommendation
from entropyfloor.screening.report import CheckpointScreening
from entropyfloor.screening.verdict import READY, UNDECIDED


def predictor_values(checkpoint: CheckpointScreening) -> dict[str, float]:
    """Every predictor of the outcome of RL that is known, oriented so that more is better."""
    scores = {
        "entropy_nats": checkpoint.entropy_nats,
        "pass_at_1": checkpoint.pass_at_1,
        "greedy_pass_at_1": checkpoint.greedy_pass_at_1,
        "degenerate_fraction": _minus(checkpoint.degenerate_fraction),
        "within_group_variance": checkpoint.within_group_variance,
        "held_out_loss": _minus(checkpoint.held_out_loss),
        "kl_to_base": _minus(checkpoint.kl_to_base),
    }
    if checkpoint.pass_at_k:
        largest = max(checkpoint.pass_at_k)
        if largest > 1:
            scores[f"pass_at_{largest}"] = checkpoint.pass_at_k[largest]
    return {name: value for name, value in scores.items() if value is not None}


def recommend(checkpoints: Sequence[CheckpointScreening]) -> Recommendation:
    """Recommend one checkpoint, or none where all are flagged.

    Args:
        checkpoints: in order of depth; at least one.

    """
    values = [predictor_values(checkpoint) for checkpoint in checkpoints]
    shared = sorted(set.intersection(*map(set, values)))
    predictors = {
        name: max(zip(checkpoints, values, strict=True), key=lambda pair: pair[1][name])[0].name
        for name in shared
        if len({value[name] for value in values}) > 1
    }
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    highest = predictors.get("pass_at_1")
    if highest is None and all(c.has_reward for c in checkpoints):
        highest = checkpoints[0].name
    chosen, reason = _choose(checkpoints)
    if chosen is None:
        return Recommendation(None, reason, highest, predictors=predictors)
    disagreements = tuple(
        f"{name} would choose {other}" for name, other in predictors.items() if other != chosen.name
    )
    if highest is None or highest == chosen.name:
        return Recommendation(
            chosen.name, reason, highest, predictors=predictors, disagreements=disagreements
        )
    other = by_name[highest]
    more_degenerate = _difference(other.degenerate_fraction, chosen.degenerate_fraction)
    shared_ks = sorted(set(other.pass_at_k) & set(chosen.pass_at_k))
    k = shared_ks[-1] if shared_ks and shared_ks[-1] > 1 else None
    less_pass = None if k is None else chosen.pass_at_k[k] - other.pass_at_k[k]
    costs = [f"entropy {other.entropy_nats:.3f} instead of {chosen.entropy_nats:.3f} nats"]
    if k is not None:
        costs.insert(0, f"pass@{k} {other.pass_at_k[k]:.2f} instead of {chosen.pass_at_k[k]:.2f}")
    if more_degenerate is not None:
        costs.insert(
            0,
            f"{other.degenerate_fraction:.0%} instead of {chosen.degenerate_fraction:.0%} "
            "degenerate groups",
        )
    return Recommendation(
        name=chosen.name,
        reason=reason,
        highest_pass_at_1=highest,
        cost=f"it is {other.verdict}, with {', '.join(costs)}",
        cost_degenerate_fraction=more_degenerate,
        cost_pass_at_k=less_pass,
        k=k,
        predictors=predictors,
        disagreements=disagreements,
    )


def _choose(
    checkpoints: Sequence[CheckpointScreening],
) -> tuple[CheckpointScreening | None, str]:
    ready = [c for c in checkpoints if c.verdict == READY]
    open_ = [c for c in checkpoints if c.verdict == UNDECIDED]
    candidates = ready or open_
    if not candidates:
        return None, f"every checkpoint is flagged{_least_bad(checkpoints)}: do not start RL yet"
    among = "ready" if ready else "undecided (none is ready)"
    if len(checkpoints) == 1:
        return candidates[0], f"it is {candidates[0].verdict}, and the only checkpoint given"
    if len(candidates) == 1:
        return candidates[0], f"the only one that is {among}"
    first = f"of {len(candidates)} that are {among}, {{}}"
    if all(c.degenerate_fraction is not None for c in candidates):
        chosen = min(
            candidates,
            key=lambda c: (c.degenerate_fraction, -max(c.pass_at_k.values(), default=0.0)),
        )
        return chosen, first.format("the one with the fewest degenerate groups")
    if all(c.held_out_loss is not None for c in candidates):
        chosen = min(candidates, key=lambda c: c.held_out_loss or 0.0)
        return chosen, first.format("the one with the lowest held-out loss")
    return candidates[-1], first.format("the last in the order given, taken as the deepest")


def _least_bad(checkpoints: Sequence[CheckpointScreening]) -> str:
    known = [c for c in checkpoints if c.degenerate_fraction is not None]
    if len(known) < len(checkpoints) or not known:
        best = max(checkpoints, key=lambda c: c.entropy_nats)
        return f" ({best.name} has the highest entropy, {best.entropy_nats:.3f} nats)"
    best = min(known, key=lambda c: c.degenerate_fraction or 0.0)
    return f" ({best.name} has the fewest degenerate groups, {best.degenerate_fraction:.0%})"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
