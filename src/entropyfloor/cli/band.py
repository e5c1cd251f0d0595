"""``entropyfloor band CKPT``: keep the prompts that RL can learn from."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Sample, print the histogram, write the prompts kept. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)
    if arguments.system is not None and not arguments.chat:
        raise ValueError("--system is the system message of --chat; give both")

    from entropyfloor.rl.band import calibration_band
    from entropyfloor.screening.processes import join_processes
    from entropyfloor.screening.prompts import load_prompts

    prompts = load_prompts(arguments.prompts)
    if arguments.chat:
        prompts = prompts.as_chat(system=arguments.system)
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
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="SPEC",
        help="JSONL file, directory written by datasets' save_to_disk, or "
        "'reasoning_gym:TASK?size=1000&seed=7'",
    )
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
    parser.add_argument("--chat", action="store_true", help="send plain prompts as a user message")
    parser.add_argument("--system", metavar="TEXT", help="system message before it")
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
    parser.add_argument("--max-new-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s, off")
    parser.add_argument("--top-k", type=int, default=0, help="default: %(default)s, off")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    parser.add_argument(
        "--engine", default="transformers", help="transformers, vllm or auto (default: %(default)s)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code that travels with the checkpoint",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
