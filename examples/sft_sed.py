"""The one-line swap: trl's SFTTrainer becomes SEDTrainer, everything else stays.

    python examples/sft_sed.py MODEL_DIR_OR_ID rows.jsonl out

Rows need `prompt` and `completion` (or `messages`, or `text`). Without a GPU it trains on the CPU.
"""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig

from entropyfloor import SEDTrainer  # was: from trl import SFTTrainer


def main(model: str, rows: str, output_dir: str) -> None:
    """Train one epoch with SED; tau is calibrated on the model before the first step."""
    cuda = torch.cuda.is_available()
    trainer = SEDTrainer(  # was: SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir,
            num_train_epochs=1,
            logging_steps=1,
            report_to=[],
            bf16=cuda,
            use_cpu=not cuda,
            model_init_kwargs={"use_safetensors": True},
        ),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        loss="sed",  # or ce, gem, dcr, dft, entropy_bonus, selective_entropy_bonus
    )
    trainer.train()
    trainer.save_model()
    print(f"tau = {trainer.loss.tau:.4f}. Next: entropyfloor screen {output_dir} --prompts FILE")


if __name__ == "__main__":
    main(*sys.argv[1:])
