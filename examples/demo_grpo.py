"""From a checkpoint of the demo through GRPO: band, GRPO under the monitor, screen on both sides.

    make demo
    python examples/demo_grpo.py runs/demo/checkpoints/ce-depth-1 --output-dir runs/demo-grpo

New problems of the demo's kind. The defaults want a GPU: on two CPU cores a rollout of 56 tokens
takes about half a second, and a step here has 128 of them. Band and screens go on where a killed
run was, and GRPO starts again.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from entropyfloor import CollapseMonitor, calibration_band, dapo_config, screen
from entropyfloor.echelon.demo import MAX_NEW_TOKENS
from entropyfloor.echelon.tasks import sum_task
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import reasoning_gym
from entropyfloor.screening.table import screening_markdown


def main(arguments: list[str] | None = None) -> None:
    """Run all stages and print the band's histogram, the monitor's message and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a model directory")
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--problems", type=int, default=256, help="of which the band is taken")
    parser.add_argument("--lowest", type=int, help="fewest of 16 passes to keep (default: 1)")
    parser.add_argument("--held-out", type=int, default=32, help="problems that are screened")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    options = parser.parse_args(arguments)

    folder = Path(options.output_dir)
    task = sum_task(
        train_problems=options.problems,
        held_out_problems=options.held_out,
        digits=2,
        subtraction=False,
        seed=1,  # the demo's is 0
    )
    problems = [{"prompt": p.prompt, "entry": json.dumps(p.entry)} for p in task.train]
    band = calibration_band(
        options.checkpoint,
        prompts=PromptSet(tuple(problems), "new three-term sums"),
        reward="reasoning_gym",
        output_dir=folder / "band",
        lowest=options.lowest,
        max_new_tokens=MAX_NEW_TOKENS,
        dtype="float32",
    )
    print(band.histogram())

    cuda = torch.cuda.is_available()
    monitor = CollapseMonitor("stop")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32),
        reward_funcs=reasoning_gym,
        args=dapo_config(
            str(folder / "grpo"),
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=options.prompts_per_step,
            max_completion_length=MAX_NEW_TOKENS,
            save_steps=max(1, options.steps // 3),
            save_only_model=True,
            bf16=cuda,
            use_cpu=not cuda,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "entry": row["entry"]} for row in band.rows()]
        ),
        processing_class=AutoTokenizer.from_pretrained(options.checkpoint),
        callbacks=[monitor],
    )
    trainer.train()
    print(monitor.message or "the run was too short for a verdict")

    report = screen(
        [options.checkpoint, folder / "grpo"],
        prompts=PromptSet(tuple(task.held_out_rows()), "held-out three-term sums"),
        reward="reasoning_gym",
        max_new_tokens=MAX_NEW_TOKENS,
        dtype="float32",
        output_dir=folder / "screening",
    )
    print(screening_markdown(report))


if __name__ == "__main__":
    main()
