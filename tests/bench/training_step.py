"""One whole training step (forward, backward, clipping, AdamW) of SEDTrainer beside its peer.

The demo's architecture (SmolLM2-135M, random weights), every token scored, the trainers of a group
in turn. The column to read is the ratio to the group's first row in the same round; a callback
times the steps, the first is left out. The floors here lie above what the model has, so that their
term acts at every timed step. A disk cache is written before the first step; its seconds are
printed apart, beside those of one step.
"""

import argparse
import contextlib
import gc
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


class StepTimer(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def build(
    folder: str,
    rows: int,
    length: int,
    *,
    trainer_class: Any = SEDTrainer,
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


def groups(folder: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What is compared with what: the keyword arguments of `build`, a group's peer first."""
    lora = {"peft_config": LoraConfig(r=16, target_modules="all-linear")}
    floor = {"loss": "ce", "entropy_floor": 9.0, "floor_probe_prompts": 0}
    uniform, anchor, onset = (
        {**floor, "floor_place": place} for place in ("uniform", "anchor", "onset_anchor")
    )
    caches = [{**anchor, "reference_cache": f"{folder}/{name}"} for name in ("full", "lora")]
    onset_caches = [{**onset, "reference_cache": f"{folder}/onset-{n}"} for n in ("full", "lora")]
    return {
        "losses": {
            "trl SFTTrainer": {"trainer_class": SFTTrainer},
            "SEDTrainer, CE": {"loss": "ce"},
            "SEDTrainer, SED": {"loss": "sed"},
        },
        "floor": {
            "SEDTrainer, CE": {"loss": "ce"},
            "floor, idle": {"config": {**floor, "entropy_floor": 1e-3}},
            "floor, uniform": {"config": uniform},
            "floor, anchor, disk cache": {"config": caches[0]},
            "floor, anchor, frozen copy": {"config": anchor},
            "floor, onset anchor, disk cache": {"config": onset_caches[0]},
            "floor, onset anchor, copy": {"config": onset},
        },
        "LoRA": {
            "LoRA, CE": {"loss": "ce", **lora},
            "LoRA, floor, anchor, disk cache": {"config": caches[1], **lora},
            "LoRA, floor, anchor, adapters off": {"config": anchor, **lora},
            "LoRA, floor, onset anchor, disk cache": {"config": onset_caches[1], **lora},
            "LoRA, floor, onset anchor, copy": {"config": onset, **lora},
        },
    }


def measure(rows: dict[str, dict[str, Any]], rounds: int, *shape: Any) -> None:
    """Train each row in turn, print median seconds a step and the median ratio of the rounds."""
    built = {name: build(*shape, **options) for name, options in rows.items()}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    cached = {}
    for number in range(rounds):
        for name, (trainer, timer) in built.items():
            timer.seconds.clear()
            with contextlib.redirect_stdout(io.StringIO()):
                started = time.perf_counter()
                # An onset's is written in a first step, which is not counted.
                cache = getattr(trainer.args, "reference_cache", None)
                if number == 0 and cache and trainer.args.floor_place == "anchor":
                    trainer._use_reference_cache()
                    cached[name] = time.perf_counter() - started
                trainer.train()
            if "entropy_floor" in rows[name].get("config", {}) and "idle" not in name:
                assert trainer.floor.head.weight > 0, "the floor's term did not act"
            seconds[name].append(statistics.median(timer.seconds[1:]))
    peer = next(iter(built))
    for name, values in seconds.items():
        ratios = [v / b for v, b in zip(values, seconds[peer], strict=True)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        note = f"  cache of the set: {cached[name]:.1f} s" if name in cached else ""
        print(
            f"{name:<38}{statistics.median(values):>9.3f}{ratio:>8.2f} ({low:.2f}-{high:.2f})"
            f"  to {peer}{note}",
            flush=True,
        )


def main() -> None:
    """Measure group after group: the trainers of one are in memory at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these words")
    options = parser.parse_args()
    print(f"\ntraining step, SmolLM2-135M, {options.rows} x {options.length} tokens, fp32")
    print(f"{'trainer':<38}{'seconds':>9}{'ratio':>8} (lowest-highest)")
    with tempfile.TemporaryDirectory() as folder:
        for rows in groups(folder).values():
            peer, *others = rows
            chosen = [n for n in others if any(w in n for w in options.only or [""])]
            if chosen:
                measured = {name: rows[name] for name in (peer, *chosen)}
                measure(measured, options.rounds, folder, options.rows, options.length)
                gc.collect()


if __name__ == "__main__":
    main()
