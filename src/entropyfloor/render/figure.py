"""A figure, drawn once by matplotlib: an SVG inside a page, a PNG (PDF, SVG) as a file.

    chart = Chart(370, 260, title="pass@k", description="what a screen reader says")
    axes = chart.axes(below="k")
    (line,) = axes.plot(ks, rates, **series(0))
    chart.tip(line, "ce: pass@1 0.250")     # shown over the mark inside a page
    chart.legend([(line, "ce")])
    chart.svg("pass-at-k")                  # Markup; the key makes its ids unique on the page
    chart.save("pass_at_k.png")

Sizes are CSS pixels: a page shows a figure at about its own size, so that text of 12 is read at 12.
In a page text stays text and colours (``render.palette``) follow the reader's light or dark ground.
Text of users is never parsed as a formula, and a legend's entry may begin with ``_``.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from entropyfloor.io import write_atomic
from entropyfloor.render.palette import LIGHT
from entropyfloor.render.text import plain, visible

_STYLE: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wider than what pages use
    "font.size": 12,
    "text.color": LIGHT["ink"],
    "axes.labelsize": 12,
    "axes.labelcolor": LIGHT["soft"],
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["soft"],
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 1.0,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "legend.fontsize": 12,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 7.0,
    "errorbar.capsize": 3.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "entropyfloor",  # the same figure has the same text, at any time
}
_PER_INCH = 72  # a CSS pixel is one of matplotlib's points
_COLOURS = 8  # of series
_SHAPES = [("o", True), ("s", True), ("^", True), ("D", True), ("v", True)]  # marker, filled
_SHAPES += [("o", False), ("s", False), ("D", False)]
_WIDE = 600  # CSS pixels: a legend stands beside a figure and not below it
_LETTERS = 44  # of a legend's entry


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font lacks is a box in a PNG, and a letter on a page.
        warnings.filterwarnings("ignore", message="(?s).*Glyph .* missing from")
        yield


class Chart:
    """One figure with a title and a description, and what is said over its marks.

    Args:
        width: CSS pixels; about 370 fits a phone, and a third of a desk.
        height: CSS pixels.
        title: what it shows, in a few words; not drawn.
        description: what it says, for those who do not see it.
        margins: left, right, top and bottom of the axes in CSS pixels; None finds room for every
            text, which takes three times as long.

    """

    def __init__(
        self,
        width: float,
        height: float,
        title: str = "",
        description: str = "",
        *,
        margins: tuple[float, float, float, float] | None = None,
    ) -> None:
        self.width, self.title, self.description = width, title, description
        self._tips: dict[str, str] = {}
        with _styled():
            self.figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), dpi=_PER_INCH)
            if margins is None:
                self.figure.set_layout_engine("constrained")
            else:
                left, right, top, bottom = margins
                self.figure.subplots_adjust(
                    left / width, bottom / height, 1 - right / width, 1 - top / height
                )
        FigureCanvasAgg(self.figure)

    def axes(self, *, below: str = "", grid: str = "y") -> Axes:
        """Axes with a caption below; ``grid`` is x, y, both or empty."""
        (axes,) = self.panels(1, 1, grid=grid)
        axes.set_xlabel(below)
        return axes

    def panels(self, rows: int, columns: int, *, grid: str = "y", **options: Any) -> list[Axes]:
        """Axes row by row; ``options`` are those of ``Figure.subplots``."""
        with _styled():
            panels = list(self.figure.subplots(rows, columns, squeeze=False, **options).flat)
            for axes in panels:
                if grid:
                    axes.grid(axis=grid)
        return panels

    def grid(self, titles: Sequence[Sequence[str]], *, below: str = "") -> list[list[Axes]]:
        """Axes in rows and columns, each with a title; a caption below those of the last row."""
        columns = len(titles[0])
        panels = iter(self.panels(len(titles), columns))
        rows = [list(islice(panels, columns)) for _ in titles]
        with _styled():
            for axes, title in zip(chain(*rows), chain(*titles), strict=True):
                axes.set_title(title)
            for axes in rows[-1]:
                axes.set_xlabel(below)
        return rows

    def tip(self, artist: Artist, words: str) -> None:
        """Say ``words`` over a mark, inside a page."""
        key = f"tip-{len(self._tips)}"
        artist.set_gid(key)
        self._tips[key] = words

    def legend(
        self, entries: Sequence[tuple[Any, str]], *, axes: Axes | None = None, columns: int = 1
    ) -> None:
        """Name marks: above the right end of ``axes``, or below the figure (beside a wide one)."""
        # Told marks and words, matplotlib leaves none out that begins with "_".
        handles = [handle for handle, _ in entries]
        words = [plain(text, _LETTERS) for _, text in entries]
        with _styled():
            if axes is None:
                wide = self.width > _WIDE and columns == 1
                place: Any = "outside right upper" if wide else "outside lower left"
                self.figure.legend(handles, words, loc=place, ncols=columns)
            else:
                axes.legend(
                    handles, words, ncols=columns, loc="lower right", bbox_to_anchor=(1.0, 0.99)
                )

    def svg(self, key: str) -> Markup:
        """Write the figure as an ``svg`` element of a page; ``key`` begins all of its ids."""
        root = ElementTree.fromstring(self._written("svg"))
        for child in [c for c in root if _name(c) in ("metadata", "defs") and not c.get("id")]:
            if _name(child) == "metadata" or _only_style(child):
                root.remove(child)
        for element in root.iter():
            self._adapt(element, key)
        _flatten(root)
        box = root.attrib["viewBox"]
        root.attrib.clear()
        root.attrib.update(
            {
                "viewBox": box,
                "class": "chart",
                "style": f"max-width:{1.25 * self.width:.0f}px",
                "role": "img",
                "aria-label": visible(self.title),
            }
        )
        if self.description:
            root.set("aria-describedby", f"{key}-said")
            said = ElementTree.Element("desc", {"id": f"{key}-said"})
            said.text = visible(self.description)
            root.insert(0, said)
        # As XML: as HTML, ElementTree leaves "<" in attributes as it is.
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def save(self, path: str | Path) -> Path:
        """Write a file of the kind that its suffix names, and return its path.

        Raises:
            ValueError: a suffix that matplotlib does not know.

        """
        target = Path(path)
        write_atomic(target, self._written(target.suffix.removeprefix(".").lower() or "png"))
        return target

    def _written(self, kind: str) -> bytes:
        file = io.BytesIO()
        with _styled():
            for text in self.figure.findobj(Text):
                assert isinstance(text, Text)
                # Also of texts that were made outside of our style.
                text.set_parse_math(False)
                text.set_text(visible(text.get_text()))
            stable = {"Date": None} if kind == "svg" else None
            ground = "none" if kind == "svg" else LIGHT["page"]
            self.figure.savefig(
                file, format=kind, dpi=2 * _PER_INCH, facecolor=ground, metadata=stable
            )
        return file.getvalue()

    def _adapt(self, element: ElementTree.Element, key: str) -> None:
        """Make matplotlib's SVG one of a page: short, its ids unique, its colours the page's."""
        element.tag = _name(element)
        for side in ("text", "tail"):
            if element.tag != "text" and not (getattr(element, side) or "").strip():
                setattr(element, side, None)
        key_of = element.attrib.pop("id", None)
        if key_of in self._tips:
            tip = ElementTree.Element("title")
            tip.text = visible(self._tips[key_of])
            element.insert(0, tip)
            element.set("class", "tip")  # a group that says something stays
        elif key_of is not None and element.tag in ("path", "clipPath"):
            element.set("id", f"{key}-{key_of}")
        for name, value in list(element.attrib.items()):
            if name.startswith("{"):
                del element.attrib[name]
                value, name = value.replace("#", f"#{key}-"), name.rpartition("}")[2]
            if value.startswith("rotate(-0 "):
                del element.attrib[name]
                continue
            if name in ("style", "fill", "stroke"):
                value = _COLOUR.sub(_variable, value)
            value = value.replace("font-family: 'DejaVu Sans'; ", "")
            value = value.replace("url(#", f"url(#{key}-")
            element.set(name, _DIGITS.sub(_short, value) if name in _NUMBERS else value)


_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_DIGITS = re.compile(r"-?\d+\.\d{2,}")
_NUMBERS = ("d", "x", "y", "width", "height", "transform")
_VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()}


def _flatten(element: ElementTree.Element) -> None:
    """Take out groups that say nothing: more than half of matplotlib's SVG."""
    children = []
    for child in element:
        _flatten(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _only_style(element: ElementTree.Element) -> bool:
    """Whether these are matplotlib's definitions of ``*``, which would reach the whole page."""
    return all(_name(child) == "style" for child in element)


def _variable(match: re.Match[str]) -> str:
    return _VARIABLES.get(match[0], match[0])


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def check_suffix(path: str | Path) -> None:
    """Raise ValueError, before compute is spent, for a suffix that no picture can be written to."""
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(f"{path}: a picture is written to .png, .svg or .pdf; end the name so")


def series(place: int) -> dict[str, Any]:
    """Colour and marker of the series at that place; 64 of them differ in one or the other."""
    colour = LIGHT[f"s{place % _COLOURS}"]
    marker, filled = _SHAPES[(place + place // _COLOURS) % len(_SHAPES)]
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": colour if filled else LIGHT["panel"],
        "markeredgecolor": LIGHT["panel"] if filled else colour,
        "markeredgewidth": 0.75 if filled else 2.0,
        "markersize": 7.0,
        "linewidth": 2.0,
    }


def key(style: Mapping[str, Any], identity: str) -> Markup:
    """The mark of a series for a legend in the text of a page; ``identity`` begins its ids."""
    chart = Chart(24, 16)
    line = Line2D([0.08, 0.5, 0.92], [0.5, 0.5, 0.5], markevery=[1], **style)
    chart.figure.add_artist(line)
    return chart.svg(identity).replace(Markup('class="chart"'), Markup('class="chart key"'), 1)


def draw_course(
    chart: Chart,
    axes: Axes,
    log: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, tuple[str, str]],
    *,
    more: Sequence[tuple[Any, str]] = (),
) -> None:
    """A run's measures by optimiser step, and a legend above for those that have words.

    Args:
        chart: of the axes.
        axes: where to.
        log: records with ``step``; a measure may be missing or None in any.
        metrics: name in the record -> (words in the legend or "", colour of the palette).
        more: further entries of the legend.

    """
    keys = []
    for place, (name, (words, colour)) in enumerate(metrics.items()):
        # Equal values of two measures (the reward is the pass rate, say) can both be seen.
        under = len(metrics) - 1 - place
        style: Any = {"linewidth": 1.5 + 1.5 * under, "alpha": 0.5 if under else 1.0}
        points = [(record["step"], record[name]) for record in log if record.get(name) is not None]
        if points:
            (line,) = axes.plot(*zip(*points, strict=True), color=LIGHT[colour], **style)
            keys += [(line, words)] if words else []
    if keys or more:
        entries = [*keys, *more]
        chart.legend(entries, axes=axes, columns=len(entries) if len(entries) <= 4 else 3)
    axes.figure.axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def threshold(axes: Axes, at: float, words: str) -> None:
    """A dashed vertical line with words over its upper end, on the side that has room."""
    with _styled():
        axes.axvline(at, color=LIGHT["bad"], linestyle="--", linewidth=1.5)
        place = axes.transLimits.transform(axes.transScale.transform((at, 0.0)))[0]
        axes.annotate(
            words,
            (at, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="left" if place < 0.5 else "right",
            va="bottom",
        )


def name_rows(axes: Axes, names: Sequence[str], letters: int = 17) -> None:
    """A row per name, the first on top; names are shortened to ``letters``."""
    with _styled():
        axes.set_yticks(range(len(names)), [plain(name, letters) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        axes.spines["left"].set_visible(False)


def entropy_axis(axes: Axes, side: Literal["x", "y"], values: Sequence[float]) -> bool:
    """From 0; logarithmic if a base model at 2.7 nats would flatten what differs by hundredths.

    Returns:
        whether it is logarithmic.

    """
    axis, limits = axes.xaxis if side == "x" else axes.yaxis, f"{side}lim"
    top = max([*values, 1e-3])
    positive = [value for value in values if value > 0]
    if not positive or top <= 20 * min(positive):
        axes.set(**{limits: (0.0, top * 1.08)})
        return False
    low = max(min(positive) / 1.3, top / 1e5)
    axes.set(**{f"{side}scale": "log", limits: (low, top * 1.3)})
    axis.set_major_locator(LogLocator(subs=(1.0,) if top / low > 200 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return True
