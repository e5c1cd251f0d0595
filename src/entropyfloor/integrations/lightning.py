"""Lightning: the entropy floor around a module whose ``training_step`` returns our loss.

    class Tuned(LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.head = model, patch_model(model, "gem", beta=0.7)

        def training_step(self, batch, _):
            return self.model(**batch).loss

    floor = EntropyFloorCallback(module.head, entropy_floor=0.2)
    Trainer(callbacks=[LightningFloor(floor)]).fit(module, loader)

Without a floor ``patch_model`` alone is enough. Only what trains with Lightning imports this file.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from entropyfloor.sft.floor.callback import EntropyFloorCallback


class LightningFloor(Callback):
    """Close every optimiser step of the floor, log its metrics, keep its state in checkpoints.

    Args:
        floor: built on the head of the module's model.
        tokenizer: for probes of rollouts, if the floor has ``probe_prompts``.

    """

    def __init__(self, floor: EntropyFloorCallback, tokenizer: Any = None) -> None:
        self.floor, self.tokenizer = floor, tokenizer
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the floor on the model that training starts from."""
        self.floor.prepare(processing_class=self.tokenizer)
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Refuse a first step whose gradient is of another loss than ours."""
        self.floor.check_first_step(type(pl_module).__name__)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """After the last micro-batch of a step: move the weight, probe where it is due, log."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        pl_module.log_dict(self.floor.step())
        if self.floor.floor is not None and self.floor.floor.wants_probe(self._step):
            self.floor.probe(self._step)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what `EntropyFloorCallback.restore` and screening read."""
        if trainer.is_global_zero:
            self.floor.save(Path(trainer.default_root_dir) / f"entropyfloor-{self._step}")
