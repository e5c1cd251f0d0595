"""A failing picture costs the picture, not the report: what may fail is written last, and apart."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entropyfloor.render.text import plain


def write_pictures(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Call each function with its path; one that raises is said in a warning, the others go on.

    Call it after the numbers are on the disk: a plot or a page is made from text and values that
    nobody foresaw, and compute was paid for the numbers.
    """
    for path, write in files.items():
        try:
            write(path)
        except Exception as error:  # whatever it is, the report is worth more
            words = plain(f"{type(error).__name__}: {error}")
            warnings.warn(f"{path} could not be written ({words}); all else was", stacklevel=2)
