"""Our loss and an entropy floor in a plain `transformers.Trainer`: two objects, no subclass.

    python examples/integrations/trainer.py MODEL_DIR_OR_ID rows.jsonl out

Rows need `text`. Without a GPU it trains on the CPU.
"""

import sys

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from entropyfloor import EntropyFloorCallback, patch_model


def main(model_name: str, rows: str, output_dir: str) -> None:
    """Train one epoch with GEM, entropy held above what a fifth of the rows says it has to be."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, use_safetensors=True)
    head = patch_model(model, "gem", beta=0.7)
    floor = EntropyFloorCallback(head, entropy_floor="auto")
    dataset = load_dataset("json", data_files=rows, split="train")
    dataset = dataset.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    parts = dataset.train_test_split(0.2, seed=0)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir,
            num_train_epochs=1,
            logging_steps=1,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],  # what the floor is read off
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[floor],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
