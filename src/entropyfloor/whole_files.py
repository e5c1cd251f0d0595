"""Files that are whole or absent, also if the process is killed while it writes them.

The lowest layer of the package: knows of no model and no measure.
"""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path``, then rename; missing parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def save_json(path: Path, content: Any) -> None:
    """Write JSON whole.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have; what was there is left alone.

    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
