"""What a ladder of depths says, in sentences made from its numbers and from nothing else."""

from entropyfloor.echelon.depths import depth_of
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.stats.intervals import Interval


def ladders(report: ScreeningReport) -> dict[str, list[CheckpointScreening]]:
    """Checkpoints by loss, shallowest first; the base (depth 0) belongs to none."""
    found: dict[str, list[CheckpointScreening]] = {}
    for checkpoint in report.checkpoints:
        loss, depth = depth_of(checkpoint.name)
        if depth:
            found.setdefault(loss, []).append(checkpoint)
    return {
        loss: sorted(steps, key=lambda step: depth_of(step.name)[1])
        for loss, steps in found.items()
    }


def conclusions(report: ScreeningReport) -> list[str]:
    """One sentence per loss, one per comparison with the first loss, one on what to give to RL."""
    found = ladders(report)
    base = next(c for c in report.checkpoints if depth_of(c.name)[1] == 0)
    words = [_course(loss.upper(), base, steps) for loss, steps in found.items()]
    (first, reference), *others = found.items()
    words += [
        _comparison(loss.upper(), steps[-1], first.upper(), reference[-1]) for loss, steps in others
    ]
    trained = [step for steps in found.values() for step in steps]
    words.append(_verdict(trained, report.settings["tau_h"]))
    words.append(
        f"One seed and {base.num_prompts} prompts: an illustration on this machine, not a finding."
    )
    return words


def _course(loss: str, base: CheckpointScreening, steps: list[CheckpointScreening]) -> str:
    def course(digits: int, values: list[float | None]) -> str:
        return " → ".join("–" if value is None else f"{value:.{digits}f}" for value in values)

    depths = ", ".join(str(depth_of(step.name)[1]) for step in steps)
    all_steps = [base, *steps]
    return (
        f"{loss}, base and after {depths} epochs: rollout entropy "
        f"{course(3, [step.entropy_nats for step in all_steps])} nats, pass@1 "
        f"{course(2, [step.pass_at_1 for step in all_steps])}, groups that would teach RL nothing "
        f"{course(2, [step.degenerate_fraction for step in all_steps])}."
    )


def _comparison(
    loss: str, step: CheckpointScreening, other: str, reference: CheckpointScreening
) -> str:
    """Deepest against deepest. Overlapping intervals are called what they are."""
    parts = []
    for measure, name in (
        ("entropy_nats", "entropy"),
        ("degenerate_fraction", "degenerate fraction"),
    ):
        mine, theirs = getattr(step, measure), getattr(reference, measure)
        apart = _apart(step.intervals.get(measure), reference.intervals.get(measure))
        relation = (
            f"{'higher' if mine > theirs else 'lower'}, intervals apart"
            if apart
            else "no difference shown, intervals overlap"
        )
        parts.append(f"{name} {mine:.3f} against {theirs:.3f} ({relation})")
    return f"{loss} against {other} at the deepest checkpoint: {'; '.join(parts)}."


def _apart(one: Interval | None, other: Interval | None) -> bool:
    if one is None or other is None:
        return False
    return one.high < other.low or other.high < one.low


def _verdict(trained: list[CheckpointScreening], tau_h: float) -> str:
    low = sum(step.entropy_nats < tau_h for step in trained)
    best = max(trained, key=lambda step: step.pass_at_1 or 0.0)
    # Of equally few degenerate groups, the one with the higher pass@1.
    widest = min(trained, key=lambda s: (s.degenerate_fraction or 0.0, -(s.pass_at_1 or 0.0)))
    text = f"{low} of {len(trained)} checkpoints are below tau_H = {tau_h:g} nats. "
    if best is widest:
        return text + (
            f"{best.name} has both the highest pass@1 ({best.pass_at_1:.2f}) and the fewest "
            f"degenerate groups ({best.degenerate_fraction:.0%})."
        )
    return text + (
        f"Highest pass@1 would pick {best.name} ({best.pass_at_1:.2f}), where "
        f"{best.degenerate_fraction:.0%} of groups are degenerate; {widest.name} has the fewest, "
        f"{widest.degenerate_fraction:.0%}, at pass@1 {widest.pass_at_1:.2f}."
    )
