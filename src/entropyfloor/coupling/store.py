"""Measurements on disk, so that what was measured is not measured again.

    FOLDER/settings.json                     what determines the numbers; other settings are refused
    FOLDER/rollouts-NAME-DIGEST.jsonl        rollouts of a checkpoint for the prompts, with rewards
    FOLDER/rollouts-own-NAME-DIGEST.jsonl    its samples for the demonstrations' prompts
    FOLDER/KIND-NAME-DIGEST.json             losses, pair sums, gradients

DIGEST changes when a checkpoint's files are written again. Checkpoints may be added from one run to
the next; rows, reward and seed may not change.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from entropyfloor.io import check_settings, save_json, write_atomic
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.rollouts.rollout_store import RolloutStore, checkpoint_digest

SCHEMA = "entropyfloor.coupling.settings"


class CouplingStore:
    """Everything measured so far; in memory only without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def claim(self, determines: dict[str, Any]) -> None:
        """Make the folder, or check that what is in it was measured with the same settings.

        Raises:
            ValueError: it was not, or the folder holds something else.

        """
        if self._folder is None:
            return
        target = self._folder / "settings.json"
        if not target.is_file():
            if any(self._folder.glob("rollouts-*.jsonl")):
                raise ValueError(
                    f"{self._folder} holds rollouts of something else; give another output "
                    "directory"
                )
            save_json(target, {"schema": SCHEMA, "determines": determines})
            return
        found = json.loads(target.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"{target} is not of schema {SCHEMA!r}; give another output directory")
        check_settings(self._folder, found["determines"], determines, holds="was measured")

    def rollouts(self, source: CheckpointSource, *, own: bool = False) -> RolloutStore:
        """Rollouts of a checkpoint, for the prompts or (``own``) for the demonstrations'."""
        return RolloutStore(self._folder, f"{'own-' if own else ''}{_name(source)}")

    def read(self, kind: str, source: CheckpointSource, key: Any) -> Any:
        """JSON data that :meth:`write` kept under the same ``key``; None if there is none."""
        target = self._file(kind, source)
        if target is None or not target.is_file():
            return None
        found = json.loads(target.read_text(encoding="utf-8"))
        return found["found"] if found["of"] == json.loads(json.dumps(key)) else None

    def write(self, kind: str, source: CheckpointSource, key: Any, found: Any) -> None:
        """Keep JSON data; ``key`` says what else it depends on."""
        if (target := self._file(kind, source)) is not None:
            text = json.dumps({"of": key, "found": found}, ensure_ascii=False)  # may be infinite
            write_atomic(target, text)

    def _file(self, kind: str, source: CheckpointSource) -> Path | None:
        return None if self._folder is None else self._folder / f"{kind}-{_name(source)}.json"


def _name(source: CheckpointSource) -> str:
    """Part of a file's name: a checkpoint of that name elsewhere, or a new one, is another."""
    # The folder's own name, not the one in tables, which depends on what else was given.
    name = source.directory.name
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    where = hashlib.sha256(str(source.directory.resolve()).encode()).hexdigest()[:6]
    return f"{safe}-{where}-{checkpoint_digest(source)[:8]}"
