"""``entropyfloor coupling``: what RL did to the SFT loss along a run, or SFT to the reward."""

import argparse
from collections.abc import Sequence

from entropyfloor.cli.options import (
    add_batches,
    add_loading,
    add_prompts,
    chosen_prompts,
)
from entropyfloor.render.terminal import console_for_tables


def main(argv: Sequence[str]) -> int:
    """Measure, print table and findings, write what was asked for. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.coupling.couple import measure_coupling
    from entropyfloor.coupling.table import coupling_terminal

    prompts = chosen_prompts(arguments)
    demonstrations = chosen_prompts(arguments, arguments.demos)
    report = measure_coupling(
        arguments.sft,
        arguments.rl,
        demonstrations=demonstrations,
        prompts=prompts,
        reward=arguments.reward,
        order=arguments.order,
        steps=arguments.steps,
        weight=arguments.weight,
        num_samples=arguments.samples,
        own_samples=arguments.own_samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        gradient_rows=arguments.gradient_rows,
        rank=arguments.rank,
        gradient_memory_gib=arguments.gradient_memory,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        output_dir=arguments.output_dir,
        progress=not arguments.no_progress,
    )
    console = console_for_tables()
    for part in coupling_terminal(report, console.width):
        console.print(part)
    if arguments.json is not None:
        report.write_json(arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor coupling",
        description="SFT loss on held-out demonstrations against reward on held-out prompts along "
        "a run, KL divergences, gradient alignment, and how long to train.",
    )
    run = parser.add_argument_group("the run")
    kinds = "model directory, PEFT adapter directory, hub id, or a trainer's folder"
    run.add_argument("--sft", nargs="+", required=True, metavar="CKPT", help=f"SFT model: {kinds}")
    run.add_argument(
        "--rl",
        nargs="+",
        required=True,
        metavar="CKPT",
        help=f"checkpoints of the RL run: {kinds} (all its checkpoint-*)",
    )
    run.add_argument(
        "--order",
        choices=["sft-rl", "rl-sft"],
        help="which came first (default: the side with one checkpoint; sft-rl if both)",
    )
    run.add_argument(
        "--steps",
        nargs="+",
        type=float,
        metavar="N",
        help="of the run's checkpoints (default: read off checkpoint-N)",
    )
    data = parser.add_argument_group("data and reward")
    data.add_argument(
        "--demos",
        required=True,
        metavar="SPEC",
        help="held-out demonstrations: JSONL or save_to_disk folder, columns prompt, completion",
    )
    add_prompts(data, required=True)
    data.add_argument(
        "--reward",
        required=True,
        metavar="NAME",
        help="exact_match, math, reasoning_gym or module:function",
    )
    sampling = parser.add_argument_group("rollouts (temperature 1)")
    sampling.add_argument(
        "--samples", type=int, default=8, metavar="N", help="per prompt (default: 8)"
    )
    sampling.add_argument(
        "--own-samples",
        type=int,
        default=4,
        metavar="N",
        help="of the SFT model per demonstration's prompt (default: 4)",
    )
    sampling.add_argument("--max-new-tokens", type=int, default=256, help="default: %(default)s")
    add_batches(sampling)
    gradients = parser.add_argument_group("gradients and durations")
    gradients.add_argument(
        "--gradient-rows",
        type=int,
        default=64,
        metavar="N",
        help="demonstrations and prompts that gradients are of; 0: none (default: 64)",
    )
    gradients.add_argument(
        "--rank", type=int, default=8, metavar="R", help="top singular directions (default: 8)"
    )
    gradients.add_argument(
        "--gradient-memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="host memory for sums of gradients; less means more passes (default: 4)",
    )
    gradients.add_argument(
        "--weight",
        type=float,
        default=1.0,
        metavar="W",
        help="what a nat per token of SFT loss costs in reward (default: 1)",
    )
    loading = parser.add_argument_group("loading")
    add_loading(loading)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the report as JSON")
    output.add_argument(
        "--output-dir",
        metavar="DIR",
        help="write coupling.json, .md, .html and .png there; given again, what was measured is "
        "not measured again, and new checkpoints are added",
    )
    output.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
