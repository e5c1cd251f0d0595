"""entropyfloor.json: what a checkpoint was trained with, so that it can be resumed and screened.

Written beside the weights of every checkpoint and final model; the loss's options are those in
force, with a calibrated tau in place of "auto".
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropyfloor.io import save_json
from entropyfloor.models.checkpoint_sources import read_json
from entropyfloor_losses import loss_by_name, loss_name_and_options

logger = logging.getLogger(__name__)
FILE_NAME = "entropyfloor.json"
VERSION = 1


def write_run_record(directory: str | Path, loss: Any, floor: dict[str, Any] | None = None) -> None:
    """Write the loss in force into ``directory``; a custom callable by its class name.

    Args:
        directory: of a checkpoint or final model.
        loss: in force, calibrated.
        floor: settings, state and probes of the entropy floor, or None.

    """
    try:
        name, options = loss_name_and_options(loss)
    except ValueError:
        name, options = f"custom:{type(loss).__qualname__}", {}
    record = {"version": VERSION, "loss": name, "options": options}
    if floor is not None:
        record["floor"] = floor
    save_json(Path(directory) / FILE_NAME, record)


def read_record(directory: str | Path) -> dict[str, Any] | None:
    """What `write_run_record` wrote; None where there is nothing."""
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        return None
    record = read_json(path)
    if record.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {record.get('version')!r} and this release reads {VERSION}; "
            "resume with the release that wrote it"
        )
    return record


def read_recorded_loss(directory: str | Path) -> Any | None:
    """The loss recorded in a checkpoint; None where there is no record or the loss was custom."""
    record = read_record(directory)
    if record is None or record["loss"].startswith("custom:"):
        return None
    return loss_by_name(record["loss"], **record["options"])


def recorded_tau(checkpoint: str | Path, waiting: Any) -> Any:
    """The loss of a checkpoint, with the tau that its run calibrated.

    Args:
        checkpoint: that a run goes on from.
        waiting: the loss of the run that goes on, with tau="auto"; returned where the checkpoint
            has no record.

    Raises:
        ValueError: the checkpoint was trained with another loss.

    """
    recorded = read_recorded_loss(checkpoint)
    if recorded is None:
        logger.warning(
            f"{checkpoint} has no record of a calibrated tau; it will be calibrated on the "
            "checkpoint's model, which is not the model training started from"
        )
        return waiting
    if not hasattr(recorded, "tau") or replace(recorded, tau="auto") != waiting:
        raise ValueError(
            f"{checkpoint} was trained with {recorded} and this run asks for {waiting}. Resume "
            "with the same loss, or pass tau as a number to change it on purpose"
        )
    return recorded
