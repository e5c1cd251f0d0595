"""One whole training step (forward, backward, clipping, AdamW) of SEDTrainer beside SFTTrainer.

The demo's architecture (SmolLM2-135M, random weights), every token scored, the trainers in turn.
The row to read is the ratio to its peer in the same round; a callback times the steps, the first is
left out. The floors here lie above what the model has, so that their term acts at every step.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from entropyfloor import SEDConfig, SEDTrainer

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}


# What a row is compared with, where that is not SFTTrainer.
PEERS = {
    "floor, idle": "SEDTrainer, CE",
    "floor, uniform": "SEDTrainer, CE",
    "floor, anchor, frozen copy": "SEDTrainer, CE",
    "LoRA, floor, anchor": "LoRA, CE",
}


class StepTimer(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def build(
    trainer_class: Any,
    folder: str,
    rows: int,
    length: int,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A trainer on random tokens of equal length, and its timer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2), dtype=torch.float32)
    tokens = torch.randint(1, SMOLLM2["vocab_size"], (rows * 8, length)).tolist()
    arguments = (SFTConfig if config is None else SEDConfig)(
        folder,
        per_device_train_batch_size=rows,
        max_steps=4,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        max_length=length,
        **(config or {}),
    )
    timer = StepTimer()
    trainer = trainer_class(
        model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": tokens}),
        processing_class=tokenizer,
        callbacks=[timer],
        **options,
    )
    return trainer, timer


def main() -> None:
    """Print median seconds per step and the ratio of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these words")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = (folder, options.rows, options.length)
        lora = LoraConfig(r=16, target_modules="all-linear")
        floor = {"loss": "ce", "entropy_floor": 9.0, "floor_probe_prompts": 0}
        idle = {**floor, "entropy_floor": 1e-3}
        uniform, anchor = ({**floor, "floor_place": place} for place in ("uniform", "anchor"))
        peers = {
            "trl SFTTrainer": build(SFTTrainer, *shape),
            "SEDTrainer, CE": build(SEDTrainer, *shape, loss="ce"),
            "SEDTrainer, SED": build(SEDTrainer, *shape, loss="sed"),
            "floor, idle": build(SEDTrainer, *shape, config=idle),
            "floor, uniform": build(SEDTrainer, *shape, config=uniform),
            "floor, anchor, frozen copy": build(SEDTrainer, *shape, config=anchor),
            "LoRA, CE": build(SEDTrainer, *shape, loss="ce", peft_config=lora),
            "LoRA, floor, anchor": build(SEDTrainer, *shape, config=anchor, peft_config=lora),
        }
        if options.only:
            peers = {name: peers[name] for name in peers if any(w in name for w in options.only)}
        rounds: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(options.rounds):
            for name, (trainer, timer) in peers.items():
                timer.seconds.clear()
                with contextlib.redirect_stdout(io.StringIO()):
                    trainer.train()
                rounds[name].append(statistics.median(timer.seconds[1:]))
    print(f"\ntraining step, SmolLM2-135M, {options.rows} x {options.length} tokens, fp32")
    print(f"{'trainer':<28}{'seconds':>9}{'ratio':>8}  to")
    for name, values in rounds.items():
        peer = PEERS.get(name, "trl SFTTrainer")
        base = rounds.get(peer, values)
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:<28}{statistics.median(values):>9.3f}{ratio:>8.2f}  {peer}", flush=True)


if __name__ == "__main__":
    main()
