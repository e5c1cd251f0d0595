"""What a framework's configuration says of us, in one flat mapping, and how it reaches the trainer.

    entropyfloor: {loss: gem, beta: 0.7, entropy_floor: 0.2, probe_prompts: held_out.jsonl}

Frameworks that hand over the model call `Settings.patch`; those that hand over no more than a list
of callbacks get a `PatchingCallback`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropyfloor.models.patch_model import patch_model
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rewards import reward_by_name
from entropyfloor.sft.calling_trainer import find_trainer
from entropyfloor.sft.floor.callback import EntropyFloorCallback
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor_losses import loss_by_name, loss_options


@dataclass(frozen=True)
class Settings:
    """A loss and a floor; build it with `Settings.of`.

    Attributes:
        loss: maps `TokenStatistics` to per-token values.
        floor: its ``entropy_floor`` is None for no floor.
        probe_prompts: whose rollouts the floor is measured on, or None.
        probe_reward: name of a reward, or None.

    """

    loss: Any
    floor: FloorOptions
    probe_prompts: PromptSet | None = None
    probe_reward: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Settings:
        """Read and check a mapping, before any model is loaded.

        Args:
            given: ``loss`` ("sed" when left out; a name or a loss object), a named loss's options
                (``lam``, ``top_k``, ``tau``, ``beta``, ...), the fields of `FloorOptions`, and the
                probe's ``probe_prompts`` (a file of prompts, or what `EntropyFloorCallback` takes)
                and ``probe_reward`` (a name).

        Raises:
            ValueError: a key that nobody knows, a loss, a floor or a reward that cannot be.

        """
        if not isinstance(given, Mapping | None):
            raise ValueError(
                f"entropyfloor is {given!r}; give a mapping, such as {{loss: gem, beta: 0.7}}"
            )
        given = dict(given or {})
        loss = given.pop("loss", "sed")
        prompts, reward = given.pop("probe_prompts", None), given.pop("probe_reward", None)
        of_floor = {field.name for field in fields(FloorOptions)}
        of_loss = set(loss_options(loss)) if isinstance(loss, str) else set()
        for key in given:
            if key not in of_floor | of_loss:
                known = [*of_loss, *of_floor, "loss", "probe_prompts", "probe_reward"]
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(
                    f"entropyfloor has no setting {key!r}; {hint}loss {loss!r} takes "
                    f"{', '.join(sorted(of_loss)) or 'no options'}, and beside it there are "
                    f"{', '.join(sorted(set(known) - of_loss))}"
                )
        floor = FloorOptions(**{k: v for k, v in given.items() if k in of_floor})
        floor.check_floor()
        if isinstance(loss, str):
            loss = loss_by_name(loss, **{k: v for k, v in given.items() if k in of_loss})
        if isinstance(prompts, str):
            prompts = load_prompts(prompts)
        if isinstance(reward, str):
            reward_by_name(reward)
        return cls(loss, floor, prompts, reward)

    def patch(self, model: Any) -> EntropyFloorCallback:
        """Patch a model; the callback returned belongs to its trainer."""
        return EntropyFloorCallback(
            patch_model(model, self.loss),
            self.floor,
            probe_prompts=self.probe_prompts,
            probe_reward=self.probe_reward,
        )


class PatchingCallback(TrainerCallback):
    """Patch the trainer's model when the trainer is built, and add the `EntropyFloorCallback`.

    Args:
        settings: of loss and floor.

    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Patch before anything wraps the model; the new callback hears of this event next."""
        trainer: Any = find_trainer(state)
        trainer.add_callback(self.settings.patch(model))
