"""Screenings on disk, for experiments that go on where they were stopped."""

import json
from pathlib import Path

from entropyfloor.io import save_json as save_json
from entropyfloor.screening.report import ScreeningReport


def load_screening(folder: Path) -> ScreeningReport | None:
    """What ``screen(..., output_dir=folder)`` wrote; None if missing, cut off or unreadable."""
    try:
        text = (folder / "screening.json").read_text(encoding="utf-8")
        return ScreeningReport.from_dict(json.loads(text))
    except (FileNotFoundError, ValueError):
        return None
