"""The figures of the coupling's HTML page, each an inline SVG."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport
from entropyfloor.render.svg import (
    Scale,
    element,
    figure,
    group,
    label,
    line,
    short_number,
)
from entropyfloor.stats.intervals import Interval

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 458, 14, 252
_ROW = 24
_NAMES = 120


def against_figure(report: CouplingReport) -> Markup:
    """Reward against SFT loss, checkpoint by checkpoint, in the order of the run."""
    rows = report.checkpoints
    x = _scale([_ends(c, "sft_loss") for c in rows], _LEFT, _RIGHT)
    y = _scale([_ends(c, "mean_reward") for c in rows], _BOTTOM, _TOP)
    parts = _axes(x, y, "SFT loss (nats per token of held-out demonstrations)", "reward")
    points = [(x(c.sft_loss), y(c.mean_reward)) for c in rows]
    parts.append(_curve(points, "curve s5"))
    labelled: list[tuple[float, float]] = []
    for checkpoint, (px, py) in zip(rows, points, strict=True):
        (left, right), (low, high) = (
            _ends(checkpoint, name) for name in ("sft_loss", "mean_reward")
        )
        marks = [
            line(x(left), py, x(right), py, "whisker"),
            line(px, y(low), px, y(high), "whisker"),
            _dot(px, py, "s0"),
        ]
        # Steps that would be written over each other are in the tooltips.
        if all(abs(px - x0) > 26 or abs(py - y0) > 14 for x0, y0 in labelled):
            labelled.append((px, py))
            marks.append(label(px + 7, py - 6, f"{checkpoint.step:g}", class_="tick strong"))
        parts.append(
            group(
                marks,
                f"{checkpoint.name}: SFT loss {checkpoint.sft_loss:.3f}, reward "
                f"{checkpoint.mean_reward:.3f}",
            )
        )
    return figure(parts, _WIDTH, _HEIGHT, "reward against SFT loss at every checkpoint")


def curve_figure(report: CouplingReport, name: str, title: str, class_: str) -> Markup:
    """One measure against the step, with best step and threshold."""
    rows = report.checkpoints
    x = Scale(0.0, max(c.step for c in rows), _LEFT, _RIGHT)
    y = _scale([_ends(c, name) for c in rows], _BOTTOM, _TOP)
    parts = _axes(x, y, report.settings.get("step_unit", "step"), title)
    for answer in report.durations:
        if answer.measured.step is not None:
            at = x(answer.measured.step)
            parts.append(
                group(
                    [line(at, _TOP, at, _BOTTOM, "threshold")],
                    f"{answer.question}, by measurement: {answer.measured.step:g}",
                )
            )
    parts.append(_curve([(x(c.step), y(getattr(c, name))) for c in rows], f"curve {class_}"))
    for checkpoint in rows:
        px, (low, high) = x(checkpoint.step), _ends(checkpoint, name)
        value = getattr(checkpoint, name)
        parts.append(
            group(
                [line(px, y(low), px, y(high), "whisker"), _dot(px, y(value), class_)],
                f"{checkpoint.name}: {value:.3f}",
            )
        )
    return figure(parts, _WIDTH, _HEIGHT, f"{title} against the step")


def identity_figure(report: CouplingReport) -> Markup:
    """Rise in SFT loss and KL of every checkpoint, nats per answer."""
    found = [(c, c.identity) for c in report.checkpoints if c.identity is not None]
    values = [(min(0.0, i.rise, i.kl), max(0.0, i.rise, i.kl)) for _, i in found]
    scale = _scale(values, _NAMES + 8, _RIGHT)

    def draw(index: int, y: float) -> list[Markup]:
        exact = found[index][1]
        return [
            line(scale(exact.rise), y, scale(exact.kl), y, "reach"),
            _dot(scale(exact.kl), y, "s0"),
            _dot(scale(exact.rise), y, "s1"),
        ]

    return _rows(
        [c.name if len(c.name) < 18 else f"…{c.name[-16:]}" for c, _ in found],
        scale,
        draw,
        [f"{c.name}: {c.identity_words}" for c, _ in found],
        [("KL(SFT‖RL)", "s0"), ("rise in SFT loss", "s1")],
        "nats per answer",
    )


def layers_figure(checkpoint: CheckpointCoupling) -> Markup | None:
    """Cosine of the two gradients by layer, with its interval and the bound."""
    if checkpoint.alignment is None:
        return None
    layers = [p for p in checkpoint.alignment.layers if p.agreement.cosine is not None]
    if not layers:
        return None
    scale = Scale(-1.0, 1.0, _NAMES + 8, _RIGHT)

    def draw(index: int, y: float) -> list[Markup]:
        layer = layers[index]
        parts: list[Markup] = []
        if layer.cosine_bound is not None:
            for end in (-layer.cosine_bound, layer.cosine_bound):
                parts.append(line(scale(end), y - 7, scale(end), y + 7, "threshold"))
        if layer.agreement.interval is not None:
            ends = layer.agreement.interval
            parts.append(line(scale(ends.low), y, scale(ends.high), y, "whisker"))
        return [*parts, _dot(scale(layer.agreement.cosine or 0.0), y, "s0")]

    def say(index: int) -> str:
        layer = layers[index]
        bound = layer.cosine_bound
        return f"{layer.name}: cosine {layer.agreement.cosine:+.3f}" + (
            "" if bound is None else f", at most {bound:.3f} by its top singular directions"
        )

    return _rows(
        [layer.name for layer in layers],
        scale,
        draw,
        [say(index) for index in range(len(layers))],
        [("cosine", "s0")],
        "cosine of the SFT and the RL gradient",
    )


def _rows(
    names: Sequence[str],
    scale: Scale,
    draw: Callable[[int, float], list[Markup]],
    titles: Sequence[str],
    key: Sequence[tuple[str, str]],
    axis: str,
) -> Markup:
    bottom = 30 + _ROW * len(names)
    parts: list[Markup] = []
    for number, (word, class_) in enumerate(key):
        at = _NAMES + 14 + 130 * number
        parts += [_dot(at, 10, class_), label(at + 10, 14, word)]
    for tick in scale.ticks():
        parts.append(line(scale(tick), 24, scale(tick), bottom, "grid"))
        parts.append(label(scale(tick), bottom + 16, short_number(tick), anchor="middle"))
    for number, name in enumerate(names):
        y = 38.0 + _ROW * number
        row = [label(_NAMES, y + 4, name, anchor="end", class_="name"), *draw(number, y)]
        parts.append(group(row, titles[number]))
    parts.append(label((_NAMES + _RIGHT) / 2, bottom + 36, axis, anchor="middle"))
    return figure(parts, _WIDTH, bottom + 44, axis)


def _axes(x: Scale, y: Scale, below: str, beside: str) -> list[Markup]:
    parts: list[Markup] = []
    for tick in x.ticks():
        parts.append(line(x(tick), _TOP, x(tick), _BOTTOM, "grid"))
        parts.append(label(x(tick), _BOTTOM + 16, short_number(tick), anchor="middle"))
    for tick in y.ticks():
        parts.append(line(_LEFT, y(tick), _RIGHT, y(tick), "grid"))
        parts.append(label(_LEFT - 6, y(tick) + 4, short_number(tick), anchor="end"))
    parts.append(label((_LEFT + _RIGHT) / 2, _BOTTOM + 36, below, anchor="middle"))
    parts.append(label(4, _TOP - 3, beside))
    return parts


def _ends(checkpoint: CheckpointCoupling, name: str) -> Interval:
    value = getattr(checkpoint, name)
    return checkpoint.intervals.get(name) or Interval(value, value)


def _scale(ends: Sequence[tuple[float, float]], start: float, end: float) -> Scale:
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return Scale(low - room, high + room, start, end)


def _curve(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=path, class_=class_)


def _dot(x: float, y: float, class_: str) -> Markup:
    return element("circle", cx=float(x), cy=float(y), r=4.0, class_=f"mark dot {class_}")
