"""What every HTML page of ours is made with: a frame, templates that escape, settings made flat.

A page is one file that needs nothing else: no script, no request (its own policy forbids both). The
template of a feature lies beside it and extends the frame::

    {% extends "render/frame.html.j2" %}      blocks: title, lead, nav, content, source
    render_page("screening/page.html.j2", settings=report.settings, ...)
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from entropyfloor.render.palette import css_variables
from entropyfloor.render.text import plain, visible

_NAME = 120  # cells of a name where ``| short`` follows it; tables have the whole in a tooltip


@cache
def environment() -> Environment:
    """Templates of the package by path, ``render/frame.html.j2``.

    Whatever a template writes is escaped, and its control characters are made visible.
    """
    environment = Environment(
        loader=PackageLoader("entropyfloor", "."),
        autoescape=True,
        finalize=_written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = partial(plain, length=_NAME)
    return environment


def render_page(template: str, *, settings: Mapping[str, Any], **values: Any) -> str:
    """Return a page as text.

    Args:
        template: path in the package; it extends ``render/frame.html.j2``.
        settings: shown flat at the end of the page.
        **values: of the template.

    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        environment()
        .get_template(template)
        .render(
            style=Markup(css_variables() + style),
            settings=settings,
            flat_settings=list(flat_settings(settings)),
            **values,
        )
    )


def flat_settings(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """``(key, value)`` with nested keys joined by a dot."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{before}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{key}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{before}{key}", "–" if value is None else str(value)


def _written(value: object) -> object:
    """What a page writes for a value; markup of our own is left as it is."""
    return value if isinstance(value, Markup) else visible(value)
