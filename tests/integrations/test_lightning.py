"""A LightningModule on a patched model: a bare loop step by step, with a floor, never silent."""
# ruff: noqa: E402 - nothing else is there to import where the framework is not

import pytest
import torch

lightning = pytest.importorskip(
    "lightning.pytorch", reason="needs lightning: make test-integrations"
)

from entropyfloor.integrations.lightning import LightningFloor
from entropyfloor.models.patch_model import patch_model
from entropyfloor.sft.floor.callback import EntropyFloorCallback
from tiny_models import tiny_model

STEPS, MICRO_BATCHES = 4, 2
FLOOR = {"entropy_floor": 5.5, "floor_place": "uniform"}


def batches():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 261, (STEPS * MICRO_BATCHES, 2, 12), generator=generator)
    return [{"input_ids": ids, "labels": ids} for ids in rows]


class Tuned(lightning.LightningModule):
    def __init__(self, replaced=False):
        super().__init__()
        self.model = tiny_model()
        self.head = patch_model(self.model, "gem", beta=0.7)
        self.replaced = replaced

    def training_step(self, batch, _):
        if self.replaced:
            return self.model(input_ids=batch["input_ids"]).logits.square().mean()
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder):
    """The floor's weight after each step."""
    weights = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            weights.append(float(trainer.callback_metrics.get("floor_weight", 0.0)))

    floor = EntropyFloorCallback(module.head, **FLOOR)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=STEPS,
        accumulate_grad_batches=MICRO_BATCHES,
        callbacks=[LightningFloor(floor), Watch()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    return weights[MICRO_BATCHES - 1 :: MICRO_BATCHES]


def test_it_is_a_bare_loop_with_a_floor(tmp_path):
    module = Tuned()
    weights = fit(module, tmp_path)

    model = tiny_model().train()
    floor = EntropyFloorCallback(patch_model(model, "gem", beta=0.7), **FLOOR)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for number, batch in enumerate(batches(), start=1):
        (model(**batch).loss / MICRO_BATCHES).backward()
        if number % MICRO_BATCHES == 0:
            optimizer.step()
            optimizer.zero_grad()
            expected.append(floor.step()["floor_weight"])
    assert weights == pytest.approx(expected, rel=1e-6)
    assert expected[-1] > expected[0] > 0
    for name, value in module.model.named_parameters():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=1e-5, atol=1e-6)
    (record,) = tmp_path.rglob("entropyfloor.json")
    assert record.parent.name == f"entropyfloor-{STEPS}"


def test_another_loss_ends_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="Tuned computed its first step without the loss"):
        fit(Tuned(replaced=True), tmp_path)
