"""The figures of the HTML report, each an inline SVG or None where there is nothing to draw.

Checkpoints are rows, in the order screened (by depth, for a trainer's folder): names stay readable
at any number of them. Curves and histograms of many checkpoints are drawn for a few *highlighted*
ones; the page shows the others on request.
"""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from entropyfloor.measures.groups import p_star
from entropyfloor.reports.screening_columns import verdict_class, verdict_word
from entropyfloor.reports.svg import (
    Scale,
    element,
    elide,
    entropy_scale,
    figure,
    group,
    label,
    line,
    short_number,
)
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

WIDTH = 480
_NAMES = 172  # pixels for the names of rows
_ROW = 24
_SERIES = 6  # curves that colours and markers keep apart


def highlighted(report: ScreeningReport, count: int = _SERIES) -> list[int]:
    """Rows to show in full: all if they are few, else what advice names, the ends, the extremes."""
    rows = report.checkpoints
    if len(rows) <= count:
        return list(range(len(rows)))
    wanted: list[int] = []
    advice = report.recommendation
    named = [] if advice is None else [advice.name, advice.highest_pass_at_1]
    wanted += [i for name in named for i, row in enumerate(rows) if row.name == name]
    entropies = [row.entropy_nats for row in rows]
    wanted += [0, len(rows) - 1, entropies.index(min(entropies)), entropies.index(max(entropies))]
    wanted += [round(i * (len(rows) - 1) / (count - 1)) for i in range(count)]
    return sorted(list(dict.fromkeys(wanted))[:count])


def entropy_figure(report: ScreeningReport) -> Markup:
    """Entropy of each checkpoint with its interval, and tau_H."""
    rows, tau_h = report.checkpoints, report.settings.get("tau_h")
    ends = [end for c in rows for end in c.intervals.get("entropy_nats", ())]
    values = [c.entropy_nats for c in rows] + ends + ([] if tau_h is None else [tau_h])
    scale = entropy_scale(values, _NAMES + 8, WIDTH - 14)
    kind = "logarithmic, " if scale.log else ""

    def draw(checkpoint: CheckpointScreening, y: float) -> list[Markup]:
        marker = _dot(checkpoint, scale(checkpoint.entropy_nats), y)
        return [*_whisker(checkpoint, "entropy_nats", scale, y), marker]

    over: list[Markup] = []
    if tau_h is not None:
        x, bottom = scale(tau_h), 26 + _ROW * len(rows)
        over = [
            line(x, 20, x, bottom, "threshold"),
            label(
                min(x, WIDTH - 40),
                14,
                f"tau_H = {tau_h:g}",
                anchor="middle",
                class_="tick strong",
            ),
        ]
    return _rows(rows, scale, draw, over, f"entropy of rollouts ({kind}nats)", _say_entropy)


def degenerate_figure(report: ScreeningReport) -> Markup | None:
    """Degenerate groups of each checkpoint: all wrong, then all right, with the interval."""
    rows = [c for c in report.checkpoints if c.degenerate_fraction is not None]
    if not rows:
        return None
    scale = Scale(0.0, 1.0, _NAMES + 8, WIDTH - 14)

    def draw(checkpoint: CheckpointScreening, y: float) -> list[Markup]:
        wrong = checkpoint.degenerate_all_wrong or 0.0
        total = checkpoint.degenerate_fraction or 0.0
        return [
            _bar(scale(0.0), y - 6, scale(wrong) - scale(0.0), 12, "wrong"),
            _bar(scale(wrong), y - 6, scale(total) - scale(wrong), 12, "right"),
            *_whisker(checkpoint, "degenerate_fraction", scale, y),
        ]

    def say(c: CheckpointScreening) -> str:
        return (
            f"{c.name}: {c.degenerate_fraction:.3f} of groups agree, "
            f"{c.degenerate_all_wrong or 0:.3f} all wrong and {c.degenerate_all_right or 0:.3f} "
            f"all right{_say_interval(c, 'degenerate_fraction')}"
        )

    over = [
        element("rect", x=_NAMES + 8, y=4, width=12, height=12, class_="wrong"),
        label(_NAMES + 24, 14, "all wrong"),
        element("rect", x=_NAMES + 98, y=4, width=12, height=12, class_="right"),
        label(_NAMES + 114, 14, "all right"),
    ]
    size = report.settings.get("group_size")
    return _rows(rows, scale, draw, over, f"share of groups of {size} that agree", say)


def headroom_figure(report: ScreeningReport) -> Markup | None:
    """pass@1 and pass@k at the largest k of each checkpoint, and the way between them."""
    rows = [c for c in report.checkpoints if len(c.pass_at_k) > 1 and c.pass_at_1 is not None]
    if not rows:
        return None
    largest = max(k for c in rows for k in c.pass_at_k)
    scale = Scale(0.0, 1.0, _NAMES + 8, WIDTH - 14)

    def ends(c: CheckpointScreening) -> tuple[float, float]:
        return c.pass_at_1 or 0.0, c.pass_at_k.get(largest, c.pass_at_1 or 0.0)

    def draw(c: CheckpointScreening, y: float) -> list[Markup]:
        low, high = (scale(end) for end in ends(c))
        return [
            line(low, y, high, y, "reach"),
            _marker(low, y, 5, "s5"),
            _marker(high, y, 0, "s0"),
        ]

    def say(c: CheckpointScreening) -> str:
        return f"{c.name}: pass@1 {ends(c)[0]:.3f}, pass@{largest} {ends(c)[1]:.3f}"

    over = [
        _marker(_NAMES + 14, 10, 5, "s5"),
        label(_NAMES + 24, 14, "pass@1"),
        _marker(_NAMES + 104, 10, 0, "s0"),
        label(_NAMES + 114, 14, f"pass@{largest}"),
    ]
    return _rows(rows, scale, draw, over, "share of prompts", say)


def pass_at_k_figure(report: ScreeningReport) -> Markup | None:
    """pass@k against k, a curve per checkpoint; the highlighted ones in colour with a legend."""
    rows = report.checkpoints
    ks = sorted({k for c in rows for k in c.pass_at_k})
    if len(ks) < 2:
        return None
    shown = [i for i in highlighted(report) if rows[i].pass_at_k]
    left, top, bottom = 42, 10, 270
    x = Scale(float(ks[0]), float(ks[-1]), left + 8, WIDTH - 14, log=True)
    y = Scale(0.0, 1.0, bottom, top)
    parts = [line(left, y(t), WIDTH - 8, y(t), "grid") for t in y.ticks()]
    parts += [label(left - 6, y(t) + 4, short_number(t), anchor="end") for t in y.ticks()]
    parts += [label(x(k), bottom + 17, k, anchor="middle") for k in _thinned(ks, x)]
    parts.append(label(WIDTH / 2, bottom + 36, "k (logarithmic)", anchor="middle"))

    def curve(index: int, class_: str, marker: int | None) -> Markup:
        c = rows[index]
        points = [(x(k), y(c.pass_at_k[k])) for k in ks if k in c.pass_at_k]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        drawn = [element("polyline", points=path, class_=f"curve {class_}")]
        if marker is not None:
            for k, (px, py) in zip([k for k in ks if k in c.pass_at_k], points, strict=True):
                if (interval := c.intervals.get(f"pass_at_{k}")) is not None:
                    drawn.append(line(px, y(interval.low), px, y(interval.high), f"bar {class_}"))
                drawn.append(_marker(px, py, marker, class_))
        found = ", ".join(f"pass@{k} {c.pass_at_k[k]:.3f}" for k in ks if k in c.pass_at_k)
        return group(drawn, f"{c.name}: {found}")

    parts += [
        curve(i, "others", None) for i, c in enumerate(rows) if c.pass_at_k and i not in shown
    ]
    parts += [curve(index, f"s{place}", place) for place, index in enumerate(shown)]
    height = bottom + 52
    for place, index in enumerate(shown):
        parts += [
            _marker(left + 4, height - 4, place, f"s{place}"),
            label(left + 16, height, elide(rows[index].name, 56), class_="tick name"),
        ]
        height += 19
    if len(shown) < sum(bool(c.pass_at_k) for c in rows):
        parts.append(line(left - 4, height - 4, left + 12, height - 4, "curve others"))
        parts.append(label(left + 16, height, "the others"))
        height += 19
    best = ", ".join(f"{rows[i].name} {rows[i].pass_at_k.get(ks[-1], 0):.3f}" for i in shown)
    return figure(parts, WIDTH, height, f"pass@k against k. pass@{ks[-1]}: {best}")


def pass_rate_figure(checkpoint: CheckpointScreening, report: ScreeningReport) -> Markup | None:
    """How many prompts have which pass rate; p*(g) marked."""
    rates = checkpoint.per_prompt_pass_rates
    if not rates:
        return None
    samples = report.settings.get("num_samples") or 10
    # One bin per possible count while they are few, centred on it; else twenty equal ones.
    bins = samples + 1 if samples <= 16 else 20
    counts = [0] * bins
    for rate in rates:
        place = round(rate * samples) if samples <= 16 else int(rate * 20)
        counts[min(place, bins - 1)] += 1
    half = 0.5 / samples if samples <= 16 else 0.0
    size = report.settings.get("group_size")
    mark = None if size is None else (p_star(size), f"p*({size}) = {p_star(size):.3f}")
    return _histogram(
        [-half + i * (1 + 2 * half) / bins for i in range(bins + 1)],
        counts,
        mark,
        "pass rate of a prompt",
        "prompts",
        ticks=[0.0, 0.25, 0.5, 0.75, 1.0],
        description=f"{checkpoint.name}: {counts[0]} of {len(rates)} prompts are in the lowest bin "
        f"of pass rates, {counts[-1]} in the highest",
    )


def token_entropy_figure(checkpoint: CheckpointScreening) -> Markup | None:
    """Share of generated tokens by their entropy; the mean marked."""
    found = checkpoint.token_entropy_histogram
    if found is None or not sum(found.counts):
        return None
    total = sum(found.counts)
    mean = checkpoint.entropy_nats
    return _histogram(
        found.edges,
        [count / total for count in found.counts],
        (mean, f"mean {mean:.3f}"),
        "entropy of a token (nats)",
        "tokens",
        description=f"{checkpoint.name}: {found.counts[0] / total:.0%} of tokens have an entropy "
        f"of at most {found.edges[1]:.2g} nats; the mean is {mean:.3f}",
    )


def _histogram(
    edges: Sequence[float],
    heights: Sequence[float],
    mark: tuple[float, str] | None,
    caption: str,
    unit: str,
    *,
    description: str,
    ticks: Sequence[float] | None = None,
) -> Markup:
    width, left, top, bottom = 330, 40, 24, 140
    x = Scale(edges[0], edges[-1], left, width - 14)
    y = Scale(0.0, max([*heights, 1e-9]) * 1.05, bottom, top)
    share = max(heights) <= 1.0 and not isinstance(heights[0], int)
    parts = []
    for tick in y.ticks(3):
        if not share and tick != int(tick):
            continue
        parts.append(line(left, y(tick), width - 8, y(tick), "grid"))
        written = f"{tick:.0%}" if share else short_number(tick)
        parts.append(label(left - 5, y(tick) + 4, written, anchor="end"))
    for low, high, value in zip(edges, edges[1:], heights, strict=False):
        shown = f"{value:.1%}" if share else f"{value:g}"
        tip = f"{max(low, 0):.3g} to {high:.3g}: {shown} {unit}"
        bar = _bar(
            x(low) + 0.5, y(value), max(0.5, x(high) - x(low) - 1), bottom - y(value), "fill"
        )
        parts.append(group([bar], tip))
    parts.append(line(left, bottom, width - 8, bottom, "axis"))
    for tick in x.ticks(5) if ticks is None else ticks:
        parts.append(label(x(tick), bottom + 16, short_number(tick), anchor="middle"))
    parts.append(label((left + width) / 2, bottom + 34, caption, anchor="middle"))
    if mark is not None:
        at = x(mark[0])
        parts.append(line(at, top - 4, at, bottom, "threshold"))
        anchor = "start" if at < width / 2 else "end"
        parts.append(label(at, top - 9, mark[1], anchor=anchor, class_="tick strong"))
    return figure(parts, width, bottom + 42, description)


def _rows(
    rows: Sequence[CheckpointScreening],
    scale: Scale,
    draw: Callable[[CheckpointScreening, float], list[Markup]],
    over: list[Markup],
    caption: str,
    say: Callable[[CheckpointScreening], str],
) -> Markup:
    top = 26
    bottom = top + _ROW * len(rows)
    parts = [line(scale(t), top, scale(t), bottom, "grid") for t in scale.ticks()]
    parts += [
        label(scale(t), bottom + 16, short_number(t), anchor="middle")
        for t in _apart(scale.ticks(), scale)
    ]
    parts.append(label((scale.start + scale.end) / 2, bottom + 35, caption, anchor="middle"))
    for index, checkpoint in enumerate(rows):
        y = top + _ROW * (index + 0.5)
        row = [
            element(
                "rect", x=0, y=y - _ROW / 2, width=WIDTH, height=_ROW, class_=f"row r{index % 2}"
            ),
            label(_NAMES, y + 4, elide(checkpoint.name, 22), anchor="end", class_="tick name"),
            *draw(checkpoint, y),
        ]
        parts.append(group(row, say(checkpoint)))
    summary = f"{caption}. " + "; ".join(say(c) for c in rows)
    return figure([*parts, *over], WIDTH, bottom + 44, summary)


def _say_interval(checkpoint: CheckpointScreening, measure: str) -> str:
    interval = checkpoint.intervals.get(measure)
    return "" if interval is None else f" (95 %: {interval.low:.3f} to {interval.high:.3f})"


def _say_entropy(checkpoint: CheckpointScreening) -> str:
    return (
        f"{checkpoint.name}: {checkpoint.entropy_nats:.3f} nats"
        f"{_say_interval(checkpoint, 'entropy_nats')}, {verdict_word(checkpoint)}"
    )


def _whisker(checkpoint: CheckpointScreening, measure: str, scale: Scale, y: float) -> list[Markup]:
    interval = checkpoint.intervals.get(measure)
    if interval is None:
        return []
    low, high = scale(interval.low), scale(interval.high)
    return [
        line(low, y, high, y, "whisker"),
        line(low, y - 4, low, y + 4, "whisker"),
        line(high, y - 4, high, y + 4, "whisker"),
    ]


def _dot(checkpoint: CheckpointScreening, x: float, y: float) -> Markup:
    """A circle; a triangle for a flagged one, so that colour is not needed."""
    kind = verdict_class(checkpoint)
    if checkpoint.flagged:
        points = f"{x - 6:.1f},{y - 5:.1f} {x + 6:.1f},{y - 5:.1f} {x:.1f},{y + 6:.1f}"
        return element("polygon", points=points, class_=f"mark {kind}")
    return element("circle", cx=float(x), cy=float(y), r=5, class_=f"mark {kind}")


def _marker(x: float, y: float, kind: int, class_: str) -> Markup:
    size = 4.5
    shapes = {
        1: [(-size, -size), (size, -size), (size, size), (-size, size)],
        2: [(0, -size), (size, size), (-size, size)],
        3: [(0, -size - 1), (size + 1, 0), (0, size + 1), (-size - 1, 0)],
        4: [(-size, -size), (size, -size), (0, size)],
    }
    if kind % 6 in shapes:
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind % 6])
        return element("polygon", points=points, class_=f"dot {class_}")
    hollow = " hollow" if kind % 6 == 5 else ""
    return element("circle", cx=float(x), cy=float(y), r=size, class_=f"dot {class_}{hollow}")


def _bar(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element(
        "rect",
        x=float(x),
        y=float(y),
        width=float(max(0.0, width)),
        height=float(max(0.0, height)),
        class_=class_,
    )


def _thinned(ks: Sequence[int], scale: Scale) -> list[int]:
    return [int(k) for k in _apart([float(k) for k in ks], scale)]


def _apart(ticks: Sequence[float], scale: Scale, pixels: float = 26.0) -> list[float]:
    """Drop ticks whose labels would run into the one before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or scale(tick) - scale(kept[-1]) >= pixels:
            kept.append(tick)
    return kept
