"""ms-swift: our loss and floor in ``swift sft``, from a file of two lines.

    # entropy_floor.py
    from entropyfloor.integrations.ms_swift import train_with
    train_with(loss="gem", beta=0.7, entropy_floor=0.2)

    swift sft --external_plugins entropy_floor.py --model ... --dataset ...

Every trainer that the process builds afterwards is patched; no further flag can be forgotten.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS

from entropyfloor.integrations.settings import PatchingCallback, Settings


class SwiftCallback(PatchingCallback):
    """Patch the model that swift trains."""

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **given: Any,
    ) -> None:
        """Patch; swift would otherwise cut the labels to what it wants of the logits."""
        args.use_logits_to_keep = False
        super().on_init_end(args, state, control, model, **given)


def train_with(**settings: Any) -> None:
    """Use a loss and a floor in this process.

    Args:
        **settings: see `Settings.of`.

    Raises:
        ValueError: settings that cannot be.

    """
    DEFAULT_CALLBACKS.append(SwiftCallback(Settings.of(settings)))
