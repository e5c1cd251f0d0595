"""The record beside every result: what made it, on what, and when."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = ("entropyfloor", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def provenance(config: Mapping[str, Any], *, seed: int, seconds: float) -> dict[str, Any]:
    """Versions, commit, hardware, seed, resolved configuration and time, as plain data."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "config": dict(config),
        "seed": seed,
        "seconds": round(seconds, 2),
        "finished": now.isoformat(timespec="seconds"),
        **_surroundings(),
    }


@cache
def _surroundings() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": gpus,
        },
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _commit() -> str | None:
    """Of the checkout that this file lies in; None for an installed package."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None


def _processor() -> str:
    """The processor's name; Linux keeps it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
