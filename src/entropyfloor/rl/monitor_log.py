"""``collapse_monitor.jsonl`` in a run's folder: one JSON object per optimizer step, for reports.

    {"event": "start", ...}     the run: steps compared, threshold, temperature, group size, rewards
    {"event": "step", ...}      step, entropy, groups, rates, relative drop
    {"event": "verdict", ...}   what stage 2 decided, at which step, what was done and saved

Written line by line. A run that resumes from a checkpoint first drops the lines of steps after it,
and a line that a kill cut short, so every step is there once.
"""

import json
import math
from pathlib import Path
from typing import Any

from entropyfloor.io import append_jsonl, read_jsonl, write_atomic

FILE_NAME = "collapse_monitor.jsonl"


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """Read the records of a run, in order.

    Args:
        run: the run's output folder, or the file itself.

    Raises:
        FileNotFoundError: it was not monitored.

    """
    path = Path(run)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; train with callbacks=[CollapseMonitor()], or give another folder"
        )
    return read_jsonl(path)


def begin_log(path: Path, resumed_step: int, start: dict[str, Any]) -> None:
    """Start the file, or cut it back to ``resumed_step``, then add the ``start`` record."""
    records = read_jsonl(path) if resumed_step > 0 else []
    kept = [record for record in records if record.get("step", 0) <= resumed_step]
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    append_log(path, {"event": "start", **start})


def append_log(path: Path, record: dict[str, Any]) -> None:
    """Add one record; numbers that are not finite, which JSON does not have, become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    append_jsonl(path, [finite])
