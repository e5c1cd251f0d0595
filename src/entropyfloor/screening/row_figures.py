"""Figures of the HTML report with a row per checkpoint: entropy, degenerate groups, headroom.

Rows are in the order screened (by depth, for a trainer's folder): names stay readable at any number
of them.
"""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from entropyfloor.render.figure_parts import (
    WIDTH,
    apart,
    bar,
    common_beginning,
    marker,
    say_interval,
)
from entropyfloor.render.svg import (
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
from entropyfloor.screening.columns import verdict_class, verdict_word
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

_NAMES, _LETTERS = 128, 17  # pixels for the names of rows, and letters that fit into them
_LEFT, _RIGHT = _NAMES + 8, WIDTH - 12
_ROW = 24


def entropy_figure(report: ScreeningReport) -> Markup:
    """Entropy of each checkpoint with its interval, and tau_H."""
    rows, tau_h = report.checkpoints, report.settings.get("tau_h")
    ends = [end for c in rows for end in c.intervals.get("entropy_nats", ())]
    values = [c.entropy_nats for c in rows] + ends + ([] if tau_h is None else [tau_h])
    scale = entropy_scale(values, _LEFT, _RIGHT)
    kind = "logarithmic, " if scale.log else ""

    def draw(checkpoint: CheckpointScreening, y: float) -> list[Markup]:
        mark = _verdict_mark(checkpoint, scale(checkpoint.entropy_nats), y)
        return [*_whisker(checkpoint, "entropy_nats", scale, y), mark]

    over: list[Markup] = []
    if tau_h is not None:
        x, bottom = scale(tau_h), 26 + _ROW * len(rows)
        words = f"tau_H = {tau_h:g}"
        over = [
            line(x, 20, x, bottom, "threshold"),
            label(min(x, WIDTH - 54), 14, words, anchor="middle", class_="tick strong"),
        ]
    return _rows(rows, scale, draw, over, f"entropy of rollouts ({kind}nats)", _say_entropy)


def degenerate_figure(report: ScreeningReport) -> Markup | None:
    """Degenerate groups of each checkpoint: all wrong, then all right, with the interval."""
    rows = [c for c in report.checkpoints if c.degenerate_fraction is not None]
    if not rows:
        return None
    scale = Scale(0.0, 1.0, _LEFT, _RIGHT)

    def draw(checkpoint: CheckpointScreening, y: float) -> list[Markup]:
        wrong = checkpoint.degenerate_all_wrong or 0.0
        total = checkpoint.degenerate_fraction or 0.0
        return [
            bar(scale(0.0), y - 6, scale(wrong) - scale(0.0), 12, "wrong"),
            bar(scale(wrong), y - 6, scale(total) - scale(wrong), 12, "right"),
            *_whisker(checkpoint, "degenerate_fraction", scale, y),
        ]

    def say(c: CheckpointScreening) -> str:
        return (
            f"{c.name}: {c.degenerate_fraction:.3f} of groups agree, "
            f"{c.degenerate_all_wrong or 0:.3f} all wrong and {c.degenerate_all_right or 0:.3f} "
            f"all right{say_interval(c, 'degenerate_fraction')}"
        )

    over = [
        bar(_LEFT, 4, 12, 12, "wrong"),
        label(_LEFT + 16, 14, "all wrong"),
        bar(_LEFT + 98, 4, 12, 12, "right"),
        label(_LEFT + 114, 14, "all right"),
    ]
    size = report.settings.get("group_size")
    return _rows(rows, scale, draw, over, f"share of groups of {size} that agree", say)


def headroom_figure(report: ScreeningReport) -> Markup | None:
    """pass@1 and pass@k at the largest k of each checkpoint, and the way between them."""
    rows = [c for c in report.checkpoints if len(c.pass_at_k) > 1 and c.pass_at_1 is not None]
    if not rows:
        return None
    largest = max(k for c in rows for k in c.pass_at_k)
    scale = Scale(0.0, 1.0, _LEFT, _RIGHT)

    def ends(c: CheckpointScreening) -> tuple[float, float]:
        return c.pass_at_1 or 0.0, c.pass_at_k.get(largest, c.pass_at_1 or 0.0)

    def draw(c: CheckpointScreening, y: float) -> list[Markup]:
        low, high = (scale(end) for end in ends(c))
        return [
            line(low, y, high, y, "reach"),
            marker(low, y, 5, "s5"),
            marker(high, y, 0, "s0"),
        ]

    def say(c: CheckpointScreening) -> str:
        return f"{c.name}: pass@1 {ends(c)[0]:.3f}, pass@{largest} {ends(c)[1]:.3f}"

    over = [
        marker(_LEFT + 6, 10, 5, "s5"),
        label(_LEFT + 16, 14, "pass@1"),
        marker(_LEFT + 96, 10, 0, "s0"),
        label(_LEFT + 106, 14, f"pass@{largest}"),
    ]
    return _rows(rows, scale, draw, over, "share of prompts", say)


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
    cut = len(common_beginning([c.name for c in rows]))
    parts = [line(scale(t), top, scale(t), bottom, "grid") for t in scale.ticks()]
    parts += [
        label(scale(t), bottom + 16, short_number(t), anchor="middle")
        for t in apart(scale.ticks(), scale)
    ]
    parts.append(label((scale.start + scale.end) / 2, bottom + 35, caption, anchor="middle"))
    for index, checkpoint in enumerate(rows):
        y = top + _ROW * (index + 0.5)
        name = elide(checkpoint.name[cut:], _LETTERS)
        row = [
            element(
                "rect", x=0, y=y - _ROW / 2, width=WIDTH, height=_ROW, class_=f"row r{index % 2}"
            ),
            label(_NAMES, y + 4, name, anchor="end", class_="tick name"),
            *draw(checkpoint, y),
        ]
        parts.append(group(row, say(checkpoint)))
    summary = f"{caption}. " + "; ".join(say(c) for c in rows)
    return figure([*parts, *over], WIDTH, bottom + 44, summary)


def _say_entropy(checkpoint: CheckpointScreening) -> str:
    return (
        f"{checkpoint.name}: {checkpoint.entropy_nats:.3f} nats"
        f"{say_interval(checkpoint, 'entropy_nats')}, {verdict_word(checkpoint)}"
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


def _verdict_mark(checkpoint: CheckpointScreening, x: float, y: float) -> Markup:
    """A circle; a triangle for a flagged one, so that colour is not needed."""
    kind = verdict_class(checkpoint)
    if checkpoint.flagged:
        points = f"{x - 6:.1f},{y - 5:.1f} {x + 6:.1f},{y - 5:.1f} {x:.1f},{y + 6:.1f}"
        return element("polygon", points=points, class_=f"mark {kind}")
    return element("circle", cx=float(x), cy=float(y), r=5, class_=f"mark {kind}")
