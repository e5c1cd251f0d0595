"""The figures of the echelon's HTML page: ladders, one loss by itself, predictors, regret."""

from collections.abc import Sequence

from markupsafe import Markup

from entropyfloor.echelon.axes import (
    Panel,
    all_spreads,
    base_spread,
    ladder,
    logarithmic,
    rounded_range,
)
from entropyfloor.echelon.compare import EchelonComparison
from entropyfloor.echelon.ladder import Spread
from entropyfloor.echelon.measure_names import outcome_words, seed_words, title
from entropyfloor.echelon.rungs import rung_name, value
from entropyfloor.render.figure_parts import WIDTH, apart, bar, marker
from entropyfloor.render.svg import (
    Scale,
    element,
    entropy_scale,
    figure,
    group,
    label,
    line,
    short_number,
)

COLOURS = 8
_SHAPES = (0, 1, 2, 3, 4, 5, 1, 3)  # of ``marker``; the last two hollow
LEFT, RIGHT, TOP, BOTTOM = 40, WIDTH - 14, 12, 236
_HEIGHT = BOTTOM + 44


class DepthAxis:
    """Where depths stand; the base has a place of its own at the left, where there is room."""

    def __init__(self, comparison: EchelonComparison, *, room_for_base: bool) -> None:
        depths, self.base = comparison.plan.depths, LEFT + 14.0
        self.log = logarithmic(depths)
        start = LEFT + (62.0 if room_for_base else 22.0)
        one = len(depths) == 1
        self._scale = Scale(
            depths[0] / 2 if one else depths[0],
            2 * depths[0] if one else depths[-1],
            start,
            RIGHT - 12,
            log=self.log,
        )
        self.depths = depths
        self.caption = "epochs of SFT" + (" (logarithmic)" if self.log else "")

    def __call__(self, depth: float) -> float:
        """Pixel of a depth."""
        return self._scale(depth)

    def drawn(self) -> list[Markup]:
        """Ticks and caption."""
        shown = apart(self.depths, self._scale)
        parts = [label(self(d), BOTTOM + 17, f"{d:g}", anchor="middle") for d in shown]
        return [*parts, label(WIDTH / 2, BOTTOM + 36, self.caption, anchor="middle")]


def ladder_figure(comparison: EchelonComparison, panel: Panel) -> Markup:
    """One measure against depth: a curve through the means of each loss, whiskers over seeds."""
    x = DepthAxis(comparison, room_for_base=bool(comparison.base))
    y = _share_scale(comparison, panel.measure)
    parts = [*grid(y), *x.drawn()]
    said = []
    if panel.measure == "entropy_nats":
        tau_h = comparison.plan.tau_h
        if y.low <= tau_h <= y.high:
            words = f"tau_H = {tau_h:g} nats"
            parts.append(group([line(LEFT, y(tau_h), RIGHT, y(tau_h), "threshold")], words))
    if (base := base_spread(comparison, panel)) is not None:
        words = f"base: {_words(base)}"
        said.append(words)
        parts.append(group([_cross(x.base, y(base.mean))], words))
        parts.append(label(x.base, BOTTOM + 17, "base", anchor="middle"))
    count = len(comparison.plan.losses)
    for place, loss in enumerate(comparison.plan.losses):
        found = ladder(comparison, loss, panel)
        shift = 2.6 * (place - (count - 1) / 2)  # beside each other, not over each other
        points = [(x(depth) + shift, y(spread.mean)) for depth, spread in found]
        drawn = [curve(points, f"curve {colour(place)}")]
        for (depth, spread), (px, py) in zip(found, points, strict=True):
            words = f"{rung_name(loss, depth)}: {_words(spread)}"
            said.append(words)
            whisker = line(px, y(spread.low), px, y(spread.high), f"bar {colour(place)}")
            drawn.append(group([whisker, loss_marker(px, py, place)], words))
        parts.append(group(drawn))
    return figure(parts, WIDTH, _HEIGHT, f"{panel.heading} against depth. {'; '.join(said)}")


def loss_figure(comparison: EchelonComparison, loss: str) -> Markup:
    """One loss: pass@1 and pass@k before RL, pass@k after it, a dot per seed."""
    plan = comparison.plan
    x, y = DepthAxis(comparison, room_for_base=False), Scale(0.0, 1.0, BOTTOM, TOP)
    parts = [*grid(y), *x.drawn()]
    before = [f"pass_at_{plan.outcome_k}"] if plan.outcome_k > 1 else []
    curves = [
        (Panel("pass_at_1", None, "pass@1 before RL"), "s1 dashed", 2),
        *((Panel(m, None, f"{title(m)} before RL"), "s0 dashed", 1) for m in before),
        (Panel("", plan.outcome, outcome_words(plan.outcome)), "s0", 0),
    ]
    said = []
    for panel, style, shape in curves:
        found = ladder(comparison, loss, panel)
        points = [(x(depth), y(spread.mean)) for depth, spread in found]
        drawn = [curve(points, f"curve {style}")]
        for depth, spread in found:
            words = f"{panel.heading}, {rung_name(loss, depth)}: {_words(spread)}"
            said.append(words)
            dots = [
                marker(x(depth), y(v), shape, style.split()[0]) for v in spread.by_seed.values()
            ]
            drawn.append(group(dots, words))
        parts.append(group(drawn))
    return figure(parts, WIDTH, _HEIGHT, f"{loss}. {'; '.join(said)}")


def predictor_figure(comparison: EchelonComparison, predictor: str) -> Markup | None:
    """Each rung's outcome against one measure before RL; None where it was not measured."""
    plan = comparison.plan
    rungs = [
        (r, found)
        for r in comparison.rungs
        if r.outcomes and (found := value(r.before, predictor)) is not None
    ]
    if not rungs:
        return None
    values = [found for _, found in rungs]
    outcomes = [r.outcomes[plan.outcome].value for r, _ in rungs]
    if predictor == "entropy_nats":
        x = entropy_scale(values, LEFT + 6, RIGHT)
    else:
        x = Scale(*rounded_range(values), LEFT + 6, RIGHT)
    y = Scale(*rounded_range(outcomes), BOTTOM, TOP)
    ticks = apart(x.ticks(), x)
    parts = grid(y)
    parts += [label(x(t), BOTTOM + 17, short_number(t), anchor="middle") for t in ticks]
    caption = f"{title(predictor)} before RL{' (nats)' if predictor == 'entropy_nats' else ''}"
    parts.append(label(WIDTH / 2, BOTTOM + 36, caption, anchor="middle"))
    for rung, found in rungs:
        place, got = plan.losses.index(rung.loss), rung.outcomes[plan.outcome].value
        words = (
            f"{rung.name}, seed {rung.seed}: {title(predictor)} {found:.3f}, "
            f"{outcome_words(plan.outcome)} {got:.3f}"
        )
        parts.append(group([loss_marker(x(found), y(got), place)], words))
    said = f"{outcome_words(plan.outcome)} against {caption}, {len(rungs)} rungs"
    return figure(parts, WIDTH, _HEIGHT, said)


def regret_figure(comparison: EchelonComparison, scope: str | None) -> Markup | None:
    """Mean regret of every rule, a dot per seed; None without outcomes."""
    plan = comparison.plan
    rules = [
        (r, regret)
        for r in comparison.rules_of(scope)
        if (regret := r.regret(plan.outcome)) is not None
    ]
    if not rules:
        return None
    rules.sort(key=lambda pair: pair[1])
    known = [pick.regret(plan.outcome) or 0.0 for r, _ in rules for pick in r.by_seed.values()]
    row, left, top = 38, 8, 8
    bottom = top + row * len(rules)
    x = Scale(0.0, max([*known, 0.01]) * 1.08, left, RIGHT)
    parts = [line(x(t), top, x(t), bottom, "grid") for t in x.ticks()]
    parts += [
        label(x(t), bottom + 17, short_number(t), anchor="middle") for t in apart(x.ticks(), x, 34)
    ]
    parts.append(label(WIDTH / 2, bottom + 36, "regret (less is better)", anchor="middle"))
    said = []
    for index, (rule, regret) in enumerate(rules):
        y = top + row * index
        seeds = [
            r for pick in rule.by_seed.values() if (r := pick.regret(plan.outcome)) is not None
        ]
        none = len(rule.by_seed) - len(seeds)
        words = f"{rule.rule}: {regret:.3f}" + (f", none in {none} seeds" if none else "")
        said.append(words)
        parts.append(
            group(
                [
                    label(left, y + 14, words, class_="tick name"),
                    bar(left, y + 20, x(regret) - left, 11, "fill"),
                    *(marker(x(r), y + 25.5, 5, "s5") for r in seeds),
                ],
                f"{words} ({seed_words(seeds)})",
            )
        )
    return figure(parts, WIDTH, bottom + 44, f"regret by rule: {'; '.join(said)}")


def key_mark(place: int) -> Markup:
    """The mark of a loss for a legend in the page's text."""
    parts = [line(0, 8, 16, 8, f"curve {colour(place)}"), loss_marker(8, 8, place)]
    return _key(parts)


def curve_mark(style: str, shape: int) -> Markup:
    """The mark of one curve of :func:`loss_figure`."""
    return _key([line(0, 8, 16, 8, f"curve {style}"), marker(8, 8, shape, style.split()[0])])


def base_mark() -> Markup:
    """The mark of the base model."""
    return _key([_cross(8, 8)])


def loss_marker(x: float, y: float, place: int) -> Markup:
    """The mark of the loss at that place: 64 of them differ in colour or in shape."""
    shape = (place + place // COLOURS) % len(_SHAPES)
    hollow = " hollow" if shape > 5 else ""
    return marker(x, y, _SHAPES[shape], f"{colour(place)}{hollow}")


def colour(place: int) -> str:
    """Class of the colour of the loss at that place; shapes tell apart those that share one."""
    return f"s{place % COLOURS}"


def _key(parts: list[Markup]) -> Markup:
    return element(
        "svg", Markup("").join(parts), viewBox="0 0 16 16", aria_hidden="true", class_="chart key"
    )


def _share_scale(comparison: EchelonComparison, measure: str) -> Scale:
    spreads = all_spreads(comparison, measure)
    values = [end for spread in spreads for end in (spread.low, spread.high)]
    if measure == "entropy_nats":
        return entropy_scale([*values, comparison.plan.tau_h], BOTTOM, TOP)
    return Scale(*rounded_range(values), BOTTOM, TOP)


def grid(y: Scale) -> list[Markup]:
    """Lines and numbers of a vertical axis."""
    ticks = y.ticks()
    parts = [line(LEFT, y(t), RIGHT, y(t), "grid") for t in ticks]
    kept: list[float] = []
    for tick in ticks:  # from the bottom up
        if not kept or y(kept[-1]) - y(tick) >= 15:
            kept.append(tick)
    return parts + [label(LEFT - 6, y(t) + 4, short_number(t), anchor="end") for t in kept]


def curve(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return element("polyline", points=path, class_=class_)


def _cross(x: float, y: float) -> Markup:
    strokes = [line(x - 5, y - 5, x + 5, y + 5, "base"), line(x - 5, y + 5, x + 5, y - 5, "base")]
    return Markup("").join(strokes)


def _words(spread: Spread) -> str:
    seeds = seed_words(spread.by_seed.values())
    return f"{spread.mean:.3f}" + (f" ({seeds})" if seeds else "")
