"""A GRPO step on the CPU: trl's GRPOTrainer beside ours, on the demo's task, in turn.

    python tests/bench/grpo_step.py --model runs/demo/sft/ce-.../ce-depth-4 --threads 1

Each round is one step of either from the same weights: 8 prompts × 8 rollouts. The two draw other
rollouts of one distribution; tokens and the share of groups without an advantage are shown beside.
CPU seconds do not count what other processes take: the ratio to trust on a busy machine.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from entropyfloor.echelon.worked_sums import draw_problems
from entropyfloor.rl.dapo import dapo_config
from entropyfloor.rl.prompt_rows import PromptRows, PromptRowsTrainer
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import reward_by_name

PROMPTS, GROUP = 8, 8


class PlainTrainer(PromptRows, GRPOTrainer):
    """trl's step, on rows as ours reads them."""


def one_step(kind: Any, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Seconds of a step, and of its parts; what was drawn."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    problems = draw_problems(PROMPTS, digits=options.digits, subtraction=True, seed=seed)
    rows = [{"prompt": problem.prompt, "entry": problem.entry} for problem in problems]
    trainer = kind(
        model=model,
        reward_funcs=reward_by_name("reasoning_gym"),
        args=dapo_config(
            tempfile.mkdtemp(),
            max_steps=1,
            save_strategy="no",
            num_generations=GROUP,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=PROMPTS * GROUP // options.micro_batch,
            max_completion_length=options.new_tokens,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            shuffle_dataset=False,
        ),
        train_dataset=PromptSet(tuple(rows), "sums").dataset(),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )
    used = {"drawing": 0.0}
    draw = trainer._generate_single_turn

    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.process_time()
        drawn = draw(*arguments, **keywords)
        used["drawing"] += time.process_time() - start
        return drawn

    trainer._generate_single_turn = timed
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer.train()
    used |= {"CPU": time.process_time() - start_cpu, "wall": time.perf_counter() - start}
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    names = {"mean tokens": "completions/mean_length", "agree": "frac_reward_zero_std"}
    return used | {shown: logged[name] for shown, name in names.items()}


def main() -> None:
    """Print every round, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a checkpoint whose rollouts end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--digits", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ratios = []
    for seed in range(options.rounds):
        steps = [one_step(kind, options, seed) for kind in (PlainTrainer, PromptRowsTrainer)]
        ratios.append(steps[0]["CPU"] / steps[1]["CPU"])
        for name, step in zip(("trl", "ours"), steps, strict=True):
            shown = "  ".join(f"{what} {value:.2f}" for what, value in step.items())
            print(f"{name:<5}{shown}", flush=True)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"trl / ours, CPU seconds: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
