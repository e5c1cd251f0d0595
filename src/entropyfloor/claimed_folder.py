"""An output folder belongs to one set of settings, so that results of two never mix."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropyfloor.whole_files import save_json


def check_same_settings(
    folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, holds: str = "holds a run"
) -> None:
    """Refuse to go on in a folder that was made with other settings.

    Args:
        folder: for the message.
        found: what it was made with, as read from JSON.
        wanted: what is wanted now; plain data for JSON.
        holds: verb and object of the message.

    Raises:
        ValueError: they differ; the message names the differences.

    """
    now = json.loads(json.dumps(wanted))
    differ = [key for key in {**now, **found} if now.get(key) != found.get(key)]
    if differ:
        listed = "; ".join(
            f"{key}: {found.get(key)!r} then, {now.get(key)!r} now" for key in differ
        )
        raise ValueError(
            f"{folder} {holds} with other settings ({listed}), which must not be mixed: give "
            "another one (--output-dir), repeat those settings to go on with it, or delete the "
            "folder"
        )


def claim_folder(folder: Path, settings: Mapping[str, Any], *, file: str = "settings.json") -> None:
    """Claim an empty folder for these settings, or check that it has them.

    Args:
        folder: made if missing.
        settings: everything that determines what will be written there; plain data for JSON.
        file: where in the folder they are kept.

    Raises:
        ValueError: the folder was claimed with other settings; the message names the differences.

    """
    path = folder / file
    if path.is_file():
        check_same_settings(folder, json.loads(path.read_text(encoding="utf-8")), settings)
    else:
        save_json(path, settings)
