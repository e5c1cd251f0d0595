"""What RL does to the SFT loss and SFT to the reward, on a small model, in minutes on a CPU.

    python examples/small_coupling.py --output-dir runs/coupling

A character model of 0.34 M parameters is pretrained on sums whose answers are mostly random,
fine-tuned on 100 worked ones, and trained with GRPO. Three measurements follow: along the GRPO run
(RL after SFT), along an SFT run that goes on from where GRPO ended (SFT after RL), and along the
same GRPO with the SFT loss mixed into every step. Losses are on one half of the held-out problems,
rewards on the other; the GRPO run is measured a second time on the rows that SFT was trained on,
where the SFT model is nearer to its optimum. A second run in the same folder goes on where the
first was stopped.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from entropyfloor import CouplingReport, JointGRPOTrainer, SFTLossProbe, measure_coupling
from entropyfloor.coupling.table import coupling_terminal
from entropyfloor.echelon.depths import DepthTraining, train_depths
from entropyfloor.echelon.small_grpo import GRPOTraining
from entropyfloor.echelon.small_run import SmallRun, SmallSettings
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS
from entropyfloor.rl.dapo import dapo_config
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import exact_match


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=6, help="epochs of SFT before RL")
    parser.add_argument("--after", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--sft-weight", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--weight", type=float, default=1.0, help="reward per nat of SFT loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretraining-steps", type=int, default=500)
    parser.add_argument("--grpo-steps", type=int, default=150)
    parser.add_argument("--test-problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args(arguments)

    grpo = GRPOTraining(steps=options.grpo_steps, save_every=max(1, options.grpo_steps // 10))
    settings = SmallSettings(
        pretraining_steps=options.pretraining_steps,
        test_problems=options.test_problems,
        grpo=grpo,
    )
    run = SmallRun(options.output_dir, seed=options.seed, settings=settings)
    (start,) = run.sft("ce", [options.depth])
    checkpoints = run.grpo(start, start.name).checkpoints
    last = checkpoints[max(checkpoints)]
    depths = DepthTraining(
        depths=tuple(options.after),
        learning_rate=settings.sft_learning_rate,
        batch_size=settings.sft_batch_size,
        bf16=False,
        seed=options.seed,
    )
    after = train_depths(
        last,
        run.task.demonstration_dataset().to_list(),
        loss="ce",
        training=depths,
        folder=run.folder / "sft-after-rl",
        options={"use_cpu": True},
    )
    measured = {"sft-rl": measure(run, options, start, list(checkpoints.values()), "sft-rl")}
    measured["sft-rl-training-rows"] = measure(
        run,
        options,
        start,
        list(checkpoints.values()),
        "sft-rl-training-rows",
        demonstrations=PromptSet(run.task.demonstrations, "the rows that SFT was trained on"),
    )
    measured["rl-sft"] = measure(
        run, options, after, [last], "rl-sft", steps=list(map(float, options.after))
    )
    for weight in options.sft_weight:
        folder = train_joint(run, start, weight)
        measured[f"joint-{weight:g}"] = measure(run, options, start, [folder], f"joint-{weight:g}")
    console = Console(width=200)
    for name, report in measured.items():
        console.print(f"\n{name}", style="bold")
        for part in coupling_terminal(report, console.width):
            console.print(part)


def measure(
    run: SmallRun,
    options: argparse.Namespace,
    sft: Any,
    rl: Any,
    name: str,
    *,
    steps: list[float] | None = None,
    demonstrations: PromptSet | None = None,
) -> CouplingReport:
    """Measure one run; demonstrations and prompts are two halves of the held-out problems."""
    rows = run.task.test
    half = len(rows) // 2
    held_out = PromptSet(rows[:half], "first half of the held-out sums")
    return measure_coupling(
        sft,
        rl,
        demonstrations=demonstrations or held_out,
        prompts=PromptSet(rows[half:], "second half of the held-out sums"),
        reward=exact_match,
        order="rl-sft" if name == "rl-sft" else "sft-rl",
        steps=steps,
        weight=options.weight,
        num_samples=options.samples,
        own_samples=8,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=4096,
        gradient_rows=half,
        seed=options.seed,
        dtype="float32",
        device="cpu",
        output_dir=options.output_dir / f"seed-{options.seed}" / "coupling" / name,
    )


def train_joint(run: SmallRun, start: Path, sft_weight: float) -> Path:
    """GRPO as in `run`, with the SFT loss of its demonstrations in every step."""
    grpo = run.settings.grpo
    folder = run.folder / "joint" / f"{sft_weight:g}"
    target = folder / f"checkpoint-{grpo.steps}"
    if (target / "trainer_state.json").is_file():
        return folder
    config = dapo_config(
        folder,
        max_steps=grpo.steps,
        save_steps=max(1, grpo.steps // 10),
        num_generations=grpo.group_size,
        per_device_train_batch_size=grpo.group_size * grpo.prompts_per_step,
        max_completion_length=MAX_NEW_TOKENS,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to="none",
        seed=run.seed,
    )
    trainer = JointGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        reward_funcs=exact_match,
        args=config,
        train_dataset=run.task.rl_dataset(),
        processing_class=AutoTokenizer.from_pretrained(start),
        sft_rows=run.task.demonstrations,
        sft_weight=sft_weight,
        sft_batch_size=32,
        callbacks=[SFTLossProbe(PromptSet(run.task.test[:100], "held-out sums"), every=15)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=bool(list(folder.glob("checkpoint-*"))) or None)
    return folder


if __name__ == "__main__":
    main()
