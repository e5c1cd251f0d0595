"""Scales, ticks and escaped elements: what the figures of an HTML report are drawn with.

Figures are drawn by hand and not by matplotlib because they sit inside a page: colours come from
the page's style sheet (light and dark), text stays text, and 40 checkpoints cost kilobytes.
Everything returned is ``Markup``; whatever comes from a user is escaped.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup

from entropyfloor.render.text import visible


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels in [start, end]; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round numbers inside the range; decades and their parts for log."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            wide = self.high / self.low > 200
            found = [f * 10.0**e for e in decades for f in ((1,) if wide else (1, 2, 5))]
            return [tick for tick in found if self.low <= tick * 1.0001 and tick <= self.high]
        rough = (self.high - self.low) / max(1, count)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def entropy_scale(values: list[float], start: float, end: float) -> Scale:
    """From 0; logarithmic if a base model at 2.7 nats would flatten what differs by hundredths."""
    top = max([*values, 1e-3])
    positive = [value for value in values if value > 0]
    if positive and top > 20 * min(positive):
        return Scale(max(min(positive) / 1.3, top / 1e5), top * 1.3, start, end, log=True)
    return Scale(0.0, top * 1.08, start, end)


def element(name: str, text: object = "", /, **attributes: object) -> Markup:
    """One SVG element; ``class_`` is class, ``stroke_width`` is stroke-width, text is escaped.

    Numbers are written with one decimal: a tenth of a pixel.
    """
    written = Markup("")
    for key, value in attributes.items():
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else visible(value)
        written += Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown)
    inside = text if isinstance(text, Markup) else visible(text)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def label(
    x: float, y: float, text: object, *, anchor: str = "start", class_: str = "tick"
) -> Markup:
    """Text whose baseline starts, is centred or ends at (x, y)."""
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def group(parts: list[Markup], title: str = "", class_: str = "") -> Markup:
    """Elements together, with a tooltip."""
    tip = element("title", title) if title else Markup("")
    return element("g", Markup("").join([tip, *parts]), **({"class_": class_} if class_ else {}))


def figure(parts: list[Markup], width: int, height: float, description: str) -> Markup:
    """The ``svg`` element, as wide as its place; ``description`` is what a screen reader says."""
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {width} {height:.0f}",
        role="img",
        aria_label=description,
        class_="chart",
    )


def elide(text: str, length: int) -> str:
    """Shorten in the middle: the ends of names tell them apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def short_number(value: float) -> str:
    """A tick: no trailing zeros, no exponent for ordinary sizes."""
    return f"{value:g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.0e}"
