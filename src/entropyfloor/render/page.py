"""What every HTML page of ours is made with: templates that escape, and settings made flat."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from entropyfloor.render.untrusted import visible


@cache
def page_environment() -> Environment:
    """Templates of ``reports/templates``: everything is escaped, control characters are shown."""
    return Environment(
        loader=PackageLoader("entropyfloor.render", "templates"),
        autoescape=True,
        finalize=_written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style_sheet(name: str) -> Markup:
    """A style sheet of ours, to be put inside a page."""
    loader = page_environment().loader
    assert loader is not None
    return Markup(loader.get_source(page_environment(), name)[0])


def flat_settings(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """``(key, value)`` with nested keys joined by a dot."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat_settings(value, f"{before}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{key}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{before}{key}", "–" if value is None else str(value)


def _written(value: object) -> object:
    """What a page writes for a value; markup of our own is left as it is."""
    return value if isinstance(value, Markup) else visible(value)
