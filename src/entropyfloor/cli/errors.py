"""Which exceptions are a user's data, files or missing extras, and what is said: the one place.

A command turns them into exit code 2 and one message; every other exception is a fault of ours and
keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from entropyfloor import how_to_install
from entropyfloor.render.text import visible

USAGE_ERROR = 2
# The machine's answers about a path that the user gave. A full disk is none of them.
_ABOUT_PATHS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Of libraries, by module and name: looked up where the library is loaded, which it is if it raised.
_OF_LIBRARIES = (
    ("datasets.exceptions", "DatasetsError", "the data cannot be read"),
    ("pyarrow", "ArrowException", "the data cannot be read"),
    ("safetensors", "SafetensorError", "the weights cannot be read: not a whole safetensors file"),
    ("jinja2", "TemplateError", "the chat template refuses the conversation"),
)


def describe(error: BaseException) -> str | None:
    """What to tell the user, or None if this is not about data, files or usage."""
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error)
    if isinstance(error, UnicodeError):
        return f"a file is not UTF-8 text ({error}); save it as UTF-8"
    for module, name, meaning in _OF_LIBRARIES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return f"{meaning} ({_innermost(error)})"
    if isinstance(error, (ValueError, *_ABOUT_PATHS)):
        return str(error)
    if isinstance(error, OSError) and error.errno is None:  # transformers' own: not found, say
        return str(error)
    return None


def exit_code(verb: str, run: Callable[[], int]) -> int:
    """Run a command; 2 and a message on standard error where :func:`describe` has words."""
    try:
        return run()
    except Exception as error:
        words = describe(error)
        if words is None:
            raise
        print(f"entropyfloor {verb}: {visible(words)}", file=sys.stderr)
        return USAGE_ERROR


def _innermost(error: BaseException) -> str:
    """The first cause's own words: what wraps it says only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
