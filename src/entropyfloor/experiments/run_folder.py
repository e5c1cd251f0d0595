"""An output folder belongs to one set of settings, so that results of two never mix."""

import json
from pathlib import Path
from typing import Any

from entropyfloor.experiments.screening_store import save_json


def claim_folder(folder: Path, settings: dict[str, Any], *, file: str = "settings.json") -> None:
    """Claim an empty folder for these settings, or check that it has them.

    Args:
        folder: made if missing.
        settings: everything that determines what will be written there; plain data for JSON.
        file: where in the folder they are kept.

    Raises:
        ValueError: the folder was claimed with other settings; the message names the differences.

    """
    path = folder / file
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        save_json(path, wanted)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    if different:
        listed = "; ".join(f"{key} {found.get(key)}, now {wanted.get(key)}" for key in different)
        raise ValueError(
            f"{folder} holds a run with other settings ({listed}): give another one "
            "(--output-dir), repeat those settings to go on with it, or delete the folder"
        )
