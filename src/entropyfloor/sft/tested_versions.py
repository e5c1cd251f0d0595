"""Which versions of trl and transformers the trainers were tested with; `make test-matrix` does.

docs/compatibility.md shows this table, tests hold the two together. Other versions work as long as
they agree: see ``trl_agreement.py``.
"""

from __future__ import annotations

from importlib.metadata import version

# trl -> transformers that the trainer tests were run with; the oldest first
TESTED: dict[str, tuple[str, ...]] = {
    "1.10.0": ("5.15.0",),
    "1.11.0": ("5.17.0",),
    "1.12.0": ("5.18.0",),
    "1.13.0": ("5.19.0",),
    "1.14.2": ("5.20.2",),
    "1.16.0": ("5.23.0", "5.24.0"),
}


def untested() -> str | None:
    """What of the installed versions was not tested, for a message; None if they were."""
    trl, transformers = version("trl"), version("transformers")
    if transformers in TESTED.get(trl, ()):
        return None
    return f"trl {trl} with transformers {transformers}"


def tested() -> str:
    """The table in one line."""
    return ", ".join(f"trl {trl} with transformers {' or '.join(t)}" for trl, t in TESTED.items())
