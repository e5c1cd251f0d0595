"""Our loss and an entropy floor in Lightning.

    python examples/integrations/lightning_module.py MODEL_DIR_OR_ID rows.jsonl out

Rows need `text`.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor import EntropyFloorCallback, patch_model
from entropyfloor.integrations.lightning import LightningFloor


class Tuned(LightningModule):
    """A language model whose own forward computes our loss."""

    def __init__(self, model_name: str) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(model_name, use_safetensors=True).train()
        self.head = patch_model(self.model, "gem", beta=0.7)

    def training_step(self, batch, _):
        """The loss of a micro-batch."""
        return self.model(**batch).loss

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def main(model_name: str, rows: str, output_dir: str) -> None:
    """Train one epoch with GEM, entropy held above 0.2 nats."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    texts = [json.loads(line)["text"] for line in Path(rows).read_text().splitlines()]

    def collate(texts):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        return {
            **batch,
            "labels": batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100),
        }

    module = Tuned(model_name)
    floor = EntropyFloorCallback(module.head, entropy_floor=0.2)
    trainer = Trainer(
        default_root_dir=output_dir, max_epochs=1, callbacks=[LightningFloor(floor)], logger=False
    )
    trainer.fit(module, torch.utils.data.DataLoader(texts, batch_size=4, collate_fn=collate))
    module.model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    floor.save(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
