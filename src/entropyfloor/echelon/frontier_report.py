"""The frontier of an echelon before RL: its figures, and which rungs are on it, in a sentence."""

from collections.abc import Iterator

from markupsafe import Markup

from entropyfloor.echelon import figures
from entropyfloor.echelon.axes import rounded_range
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.ladder import BASE, frontier_measures
from entropyfloor.echelon.measure_names import count, title
from entropyfloor.echelon.rungs import rung_name
from entropyfloor.render.figure_parts import WIDTH, apart
from entropyfloor.render.svg import Scale, entropy_scale, figure, group, label, line, short_number


def frontier_words(comparison: EchelonComparison) -> str:
    """``at least its entropy, pass@1 and pass@8 and at most its degenerate fraction``."""
    measures = frontier_measures(comparison.ladder, comparison.plan)
    more = [title(name) for name, sign in measures.items() if sign > 0]
    less = [title(name) for name, sign in measures.items() if sign < 0]
    words = " and ".join([", ".join(more[:-1]), more[-1]] if len(more) > 1 else more)
    return f"at least its {words}" + "".join(f" and at most its {name}" for name in less)


def frontier_findings(comparison: EchelonComparison) -> Iterator[str]:
    """Which rungs nothing beats, and which losses are beaten at every depth."""
    rungs = comparison.frontier
    if not rungs:
        return
    there = {
        loss: [f"{r.depth:g}" for r in rungs if r.loss == loss and not r.beaten_by]
        for loss in dict.fromkeys(rung.loss for rung in rungs)
    }
    listed = "; ".join(f"{loss} at {', '.join(at)}" for loss, at in there.items() if at)
    number = sum(map(len, there.values()))
    words = (
        f"Before RL {number} of {count(len(rungs), 'rung')} {'is' if number == 1 else 'are'} on "
        f"the frontier, beaten by none with {frontier_words(comparison)}, in the mean of "
        f"the seeds: {listed} (epochs)"
    )
    if beaten := [loss for loss, at in there.items() if not at]:
        words += f"; beaten at every depth: {', '.join(beaten)}"
    yield f"{words}."


def frontier_figures(comparison: EchelonComparison) -> list[tuple[str, Markup]]:
    """``(measure, figure)`` of each measure against entropy; none without a frontier."""
    measures = frontier_measures(comparison.ladder, comparison.plan) if comparison.frontier else {}
    return [(n, _against_entropy(comparison, n)) for n in measures if n != "entropy_nats"]


def _against_entropy(comparison: EchelonComparison, measure: str) -> Markup:
    plan = comparison.plan
    rows = [row for row in comparison.ladder if row.loss != BASE]
    beaten = {(r.loss, r.depth): bool(r.beaten_by) for r in comparison.frontier}
    entropy = {id(row): row.before["entropy_nats"].mean for row in rows}
    heights = [row.before[measure].mean for row in rows]
    x = entropy_scale([*entropy.values(), plan.tau_h], figures.LEFT + 6, figures.RIGHT)
    y = Scale(*rounded_range(heights), figures.BOTTOM, figures.TOP)
    parts = figures.grid(y)
    for tick in apart(x.ticks(), x):
        parts.append(label(x(tick), figures.BOTTOM + 17, short_number(tick), anchor="middle"))
    caption = "entropy before RL (nats)"
    parts.append(label(WIDTH / 2, figures.BOTTOM + 36, caption, anchor="middle"))
    threshold = line(x(plan.tau_h), figures.TOP, x(plan.tau_h), figures.BOTTOM, "threshold")
    parts.append(group([threshold], f"tau_H = {plan.tau_h:g} nats"))
    for place, loss in enumerate(plan.losses):
        own = [row for row in rows if row.loss == loss]
        points = [(x(entropy[id(row)]), y(row.before[measure].mean)) for row in own]
        parts.append(figures.curve(points, f"curve {figures.colour(place)}"))
        for row, (px, py) in zip(own, points, strict=True):
            words = (
                f"{rung_name(loss, row.depth)}: entropy {entropy[id(row)]:.3f}, "
                f"{title(measure)} {row.before[measure].mean:.3f}"
                f"{'' if beaten[loss, row.depth] else ', on the frontier'}"
            )
            parts.append(group([figures.loss_marker(px, py, place)], words))
    said = f"{title(measure)} against {caption}, {count(len(rows), 'rung')}"
    return figure(parts, WIDTH, figures.BOTTOM + 44, said)
