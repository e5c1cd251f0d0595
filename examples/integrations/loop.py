"""Our loss and an entropy floor in a bare torch loop.

    python examples/integrations/loop.py MODEL_DIR_OR_ID rows.jsonl out

Rows need `text`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor import EntropyFloorCallback, patch_model


def main(model_name: str, rows: str, output_dir: str) -> None:
    """Train one epoch with GEM, entropy held above 0.2 nats."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, use_safetensors=True).train()
    texts = [json.loads(line)["text"] for line in Path(rows).read_text().splitlines()]

    head = patch_model(model, "gem", beta=0.7)
    floor = EntropyFloorCallback(head, entropy_floor=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for start in range(0, len(texts), 4):
        batch = tokenizer(texts[start : start + 4], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics = floor.step()  # refuses a first step that our loss had no part in
        print(f"ce {metrics['ce']:.3f}  entropy {metrics['entropy']:.3f} nats")
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    floor.save(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
