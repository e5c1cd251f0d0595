"""The pass@k curves of the HTML report: a few in colour and named, the others grey."""

from dataclasses import dataclass

from markupsafe import Markup

from entropyfloor.render.figure_parts import WIDTH, apart, common_beginning, highlighted, marker
from entropyfloor.render.svg import Scale, element, figure, group, label, line, short_number
from entropyfloor.screening.report import ScreeningReport


@dataclass(frozen=True)
class Key:
    """One entry of the legend: the mark of a curve, the checkpoint, and what its curve says."""

    mark: Markup
    name: str
    words: str


@dataclass(frozen=True)
class Curves:
    """The figure and its legend, which is text of the page: names are as long as they are."""

    chart: Markup
    keys: tuple[Key, ...]


def pass_at_k_figure(report: ScreeningReport) -> Curves | None:
    """pass@k against k, a curve per checkpoint; None for fewer than two k."""
    rows = report.checkpoints
    ks = sorted({k for c in rows for k in c.pass_at_k})
    if len(ks) < 2:
        return None
    shown = [i for i in highlighted(report) if rows[i].pass_at_k]
    left, top, bottom = 36, 10, 250
    x = Scale(float(ks[0]), float(ks[-1]), left + 8, WIDTH - 14, log=True)
    y = Scale(0.0, 1.0, bottom, top)
    parts = [line(left, y(t), WIDTH - 8, y(t), "grid") for t in y.ticks()]
    parts += [label(left - 6, y(t) + 4, short_number(t), anchor="end") for t in y.ticks()]
    ticks = apart([float(k) for k in ks], x)
    parts += [label(x(k), bottom + 17, int(k), anchor="middle") for k in ticks]
    parts.append(label(WIDTH / 2, bottom + 36, "k (logarithmic)", anchor="middle"))

    def curve(index: int, class_: str, shape: int | None) -> Markup:
        c = rows[index]
        known = [k for k in ks if k in c.pass_at_k]
        points = [(x(k), y(c.pass_at_k[k])) for k in known]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        drawn = [element("polyline", points=path, class_=f"curve {class_}")]
        if shape is not None:
            for k, (px, py) in zip(known, points, strict=True):
                if (interval := c.intervals.get(f"pass_at_{k}")) is not None:
                    drawn.append(line(px, y(interval.low), px, y(interval.high), f"bar {class_}"))
                drawn.append(marker(px, py, shape, class_))
        found = ", ".join(f"pass@{k} {c.pass_at_k[k]:.3f}" for k in known)
        return group(drawn, f"{c.name}: {found}")

    others = [i for i, c in enumerate(rows) if c.pass_at_k and i not in shown]
    parts += [curve(index, "others", None) for index in others]
    parts += [curve(index, f"s{place}", place) for place, index in enumerate(shown)]
    largest = ks[-1]
    cut = len(common_beginning([c.name for c in rows]))
    keys = [
        Key(
            _mark([marker(8, 8, place, f"s{place}")]),
            rows[index].name[cut:],
            f"pass@{ks[0]} {rows[index].pass_at_k.get(ks[0], 0.0):.3f}, "
            f"pass@{largest} {rows[index].pass_at_k.get(largest, 0.0):.3f}",
        )
        for place, index in enumerate(shown)
    ]
    if others:
        keys.append(
            Key(
                _mark([line(0, 8, 16, 8, "curve others")]),
                "one other" if len(others) == 1 else f"{len(others)} others",
                "",
            )
        )
    said = ", ".join(f"{key.name} {key.words}" for key in keys)
    chart = figure(parts, WIDTH, bottom + 44, f"pass@k against k: {said}")
    return Curves(chart, tuple(keys))


def _mark(parts: list[Markup]) -> Markup:
    return element(
        "svg", Markup("").join(parts), viewBox="0 0 16 16", aria_hidden="true", class_="chart key"
    )
