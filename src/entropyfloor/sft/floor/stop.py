"""on_violation="stop": the weights of the last checkpoint above the floor are put back."""

from __future__ import annotations

from typing import Any

from entropyfloor.sft.floor.floor import EntropyFloor, warn
from entropyfloor.sft.floor.probe import last_above


def restore_last_above(floor: EntropyFloor, trainer: Any, output_dir: str) -> None:
    """Load the last checkpoint of ``output_dir`` that was measured above a violated floor.

    Args:
        floor: violated; it goes back to its state there.
        trainer: that was stopped; None: nothing is loaded.
        output_dir: of the run.

    """
    good = last_above(output_dir, floor.controller.floor)
    if good is None or trainer is None:
        warn(
            f"training stopped ({floor.violated}) and no checkpoint of {output_dir} was measured "
            "above the floor, so the weights stay as they are. Save more often (save_steps)"
        )
        return
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        whole = not hasattr(trainer.model, "peft_config")  # frozen weights are not in checkpoints
        deepspeed_load_checkpoint(trainer.model_wrapped, str(good), load_module_strict=whole)
    else:
        trainer._load_from_checkpoint(str(good))
    floor.restore(good)
    warn(f"training stopped ({floor.violated}); restored {good.name}")
