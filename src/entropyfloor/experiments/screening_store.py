"""Screenings on disk, for experiments that go on where they were stopped."""

import json
import os
from pathlib import Path
from typing import Any

from entropyfloor.measures.intervals import Interval
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport


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
    return ScreeningReport(tuple(map(_checkpoint, found["checkpoints"])), found["settings"])


def _checkpoint(record: dict[str, Any]) -> CheckpointScreening:
    restored = {
        "pass_at_k": {int(k): value for k, value in record.get("pass_at_k", {}).items()},
        "intervals": {name: Interval(*ends) for name, ends in record["intervals"].items()},
        "reasons": tuple(record["reasons"]),
        "notes": tuple(record["notes"]),
    }
    return CheckpointScreening(**{**record, **restored})
