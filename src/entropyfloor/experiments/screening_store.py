"""Screenings on disk, for experiments that go on where they were stopped."""

import json
import os
from pathlib import Path
from typing import Any

from entropyfloor.screening.report import ScreeningReport


def save_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is whole or absent, also if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def load_screening(folder: Path) -> ScreeningReport | None:
    """What ``screen(..., output_dir=folder)`` wrote; None if it is missing or was cut off."""
    try:
        found = json.loads((folder / "screening.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ScreeningReport.from_dict(found)
