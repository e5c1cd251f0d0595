"""What several figures of the HTML report share: their width, marks, bars, room between ticks.

``WIDTH`` is about what a phone, and one of three columns on a desk, has in pixels: figures are
shown at their own size, so that the smallest text, 12 px, stays readable.
"""

from collections.abc import Sequence

from markupsafe import Markup

from entropyfloor.render.svg import Scale, element

__all__ = ["WIDTH", "apart", "bar", "marker"]
WIDTH = 370
SERIES = 6  # curves that colours and markers keep apart


def marker(x: float, y: float, kind: int, class_: str) -> Markup:
    """One of six shapes, so that series stay apart without colour."""
    size = 4.5
    shapes = {
        1: [(-size, -size), (size, -size), (size, size), (-size, size)],
        2: [(0, -size), (size, size), (-size, size)],
        3: [(0, -size - 1), (size + 1, 0), (0, size + 1), (-size - 1, 0)],
        4: [(-size, -size), (size, -size), (0, size)],
    }
    if kind % SERIES in shapes:
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind % SERIES])
        return element("polygon", points=points, class_=f"dot {class_}")
    hollow = " hollow" if kind % SERIES == 5 else ""
    return element("circle", cx=float(x), cy=float(y), r=size, class_=f"dot {class_}{hollow}")


def bar(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle; sizes below zero are zero."""
    return element(
        "rect",
        x=float(x),
        y=float(y),
        width=float(max(0.0, width)),
        height=float(max(0.0, height)),
        class_=class_,
    )


def apart(ticks: Sequence[float], scale: Scale, pixels: float = 28.0) -> list[float]:
    """Drop ticks whose labels would run into the one before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or scale(tick) - scale(kept[-1]) >= pixels:
            kept.append(tick)
    return kept
