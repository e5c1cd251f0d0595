"""entropyfloor: SFT checkpoints that reinforcement learning can still improve.

Public names are imported on first use, so that ``import entropyfloor`` (and ``entropyfloor
--help``) does not pay for torch, transformers and trl. The trainers need the extra ``trl``; nothing
else does.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CollapseMonitor": "entropyfloor.rl.collapse_monitor",
    "CouplingReport": "entropyfloor.coupling.report",
    "EntropyFloorCallback": "entropyfloor.sft.floor.callback",
    "GFTConfig": "entropyfloor.gft.config",
    "GFTTrainer": "entropyfloor.gft.trainer",
    "Judging": "entropyfloor.screening.options",
    "JointGRPOTrainer": "entropyfloor.rl.joint_trainer",
    "LossHead": "entropyfloor.models.loss_head",
    "Loading": "entropyfloor.rollouts.options",
    "Output": "entropyfloor.rollouts.options",
    "SEDConfig": "entropyfloor.sft.sed_config",
    "SEDTrainer": "entropyfloor.sft.sed_trainer",
    "SFTLossProbe": "entropyfloor.rl.sft_loss_probe",
    "Sampling": "entropyfloor.rollouts.options",
    "ScreeningReport": "entropyfloor.screening.report",
    "calibration_band": "entropyfloor.rl.band",
    "dapo_config": "entropyfloor.rl.dapo",
    "measure_coupling": "entropyfloor.coupling.couple",
    "patch_model": "entropyfloor.models.patch_model",
    "p_star": "entropyfloor.stats.groups",
    "screen": "entropyfloor.screening.screen",
}

# What an extra of this distribution installs, by the name under which it is imported.
_EXTRAS = {
    "trl": "trl",
    "peft": "trl",
    "accelerate": "trl",
    "math_verify": "math",
    "reasoning_gym": "tasks",
    "vllm": "vllm",
    "ray": "ray",
    "datasketch": "overlap",
    "tensorboard": "tensorboard",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name in _PUBLIC:
        try:
            return getattr(import_module(_PUBLIC[name]), name)
        except ModuleNotFoundError as error:
            if advice := how_to_install(error):
                raise ImportError(f"{name}: {advice}", name=error.name) from error
            raise
    raise AttributeError(f"module 'entropyfloor' has no attribute {name!r}; it has {__all__}")


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """What to install for a module that is missing; None if no extra brings it."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return f'{package} is not installed; pip install "entropyfloor[{_EXTRAS[package]}]"'


def __dir__() -> list[str]:
    return __all__
