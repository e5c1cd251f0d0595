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
    """What ``screen(..., output_dir=folder)`` wrote; None if missing, cut off or unreadable."""
    try:
        text = (folder / "screening.json").read_text(encoding="utf-8")
        return ScreeningReport.from_dict(json.loads(text))
    except (FileNotFoundError, ValueError):
        return None
