"""``entropyfloor band CKPT``: keep the prompts that RL can learn from."""

import argparse
from collections.abc import Sequence

from entropyfloor.cli.options import (
    add_batches,
    add_dry_run,
    add_engine,
    add_loading,
    add_prompts,
    add_sampling,
    chosen_prompts,
)


def main(argv: Sequence[str]) -> int:
    """Sample, print the histogram, write the prompts kept. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)

    from entropyfloor.rl.band import calibration_band
    from entropyfloor.rollouts.processes import join_processes

    prompts = chosen_prompts(arguments)
    if arguments.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled
        from entropyfloor.rl.band import band_edges

        band_edges(arguments.samples, arguments.lowest, arguments.highest)
        return say_what_is_sampled(arguments, [arguments.checkpoint], prompts)
    processes = join_processes()
    band = calibration_band(
        arguments.checkpoint,
        prompts=prompts,
        reward=arguments.reward,
        output_dir=arguments.output_dir,
        num_samples=arguments.samples,
        lowest=arguments.lowest,
        highest=arguments.highest,
        success_threshold=arguments.success_threshold,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        engine=arguments.engine,
        progress=not arguments.no_progress,
        processes=processes,
    )
    if processes.main:
        print(band.histogram())
        print(
            f"Written to {band.path}. Train on it:\n"
            f"  entropyfloor grpo --model_name_or_path {arguments.checkpoint} "
            f"--prompts {band.path} --reward {arguments.reward} --output_dir runs/grpo"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor band",
        description="Draw rollouts of every prompt and keep the prompts of which some but not all "
        "pass: the calibration band, 1 to 14 of 16.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="the model that RL will start from")
    add_prompts(parser, required=True, size=1000)
    parser.add_argument(
        "--reward",
        required=True,
        metavar="NAME",
        help="exact_match, math, reasoning_gym, ... or module:function",
    )
    parser.add_argument(
        "--output-dir",
        required=True,
        metavar="DIR",
        help="gets band.jsonl, band.json and the rollouts; given again after a kill, it goes on",
    )
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--lowest", type=int, metavar="N", help="fewest passes to keep (default: 1 of 16)"
    )
    parser.add_argument(
        "--highest", type=int, metavar="N", help="most passes to keep (default: 14 of 16)"
    )
    parser.add_argument(
        "--success-threshold",
        type=float,
        default=1.0,
        metavar="R",
        help="a rollout passes if its reward is at least this (default: %(default)s)",
    )
    add_sampling(parser)
    add_batches(parser)
    add_loading(parser)
    add_engine(parser)
    add_dry_run(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
