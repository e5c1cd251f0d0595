"""``entropyfloor rescue CKPT --base BASE``: the smallest step back that clears the floor."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from entropyfloor.cli.options import add_batches, add_loading, add_prompts, chosen_prompts
from entropyfloor.screening.verdict import TAU_H


def main(argv: Sequence[str]) -> int:
    """Rescue, print the points and where the checkpoint lies. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)

    from entropyfloor.render.table import Column, Table
    from entropyfloor.render.terminal import console_for_tables, print_line
    from entropyfloor.screening.rescue import rescue

    prompts, console = chosen_prompts(arguments), console_for_tables()
    found = rescue(
        arguments.checkpoint,
        base=arguments.base,
        floor=arguments.floor,
        prompts=prompts,
        output_dir=arguments.output_dir,
        reward=arguments.reward,
        tolerance=arguments.tolerance,
        say=partial(print_line, console),
        num_samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        progress=not arguments.no_progress,
    )
    table = Table(
        f"{arguments.checkpoint} towards {arguments.base}",
        tuple(Column(name) for name in asdict(found.points[0])),
        tuple(
            tuple(f"{v:.3f}" if isinstance(v, float) else str(v) for v in asdict(point).values())
            for point in found.points
        ),
    )
    console.print(table.to_rich())
    words = f"{found.share:.1%} of the base clears the floor {found.floor}; written: {found.path}"
    if found.share == 0:
        words = f"nothing to rescue: the checkpoint clears the floor; a copy is at {found.path}"
    print_line(console, words)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor rescue",
        description="Interpolate a collapsed checkpoint towards its base, the smallest step whose "
        "rollouts clear the entropy floor (the lower end of the 95 %% interval). A rerun into the "
        "same folder goes on where it was stopped.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="model directory or LoRA adapter")
    parser.add_argument("--base", required=True, help="the model it was trained from")
    add_prompts(parser, required=True)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="result, and resume")
    parser.add_argument("--floor", type=float, default=TAU_H, help="nats (default %(default)s)")
    parser.add_argument("--reward", metavar="NAME", help="as in screen; entropy alone decides")
    parser.add_argument(
        "--tolerance", type=float, default=1 / 32, help="largest share too much (default 1/32)"
    )
    parser.add_argument("--samples", type=int, default=8, help="rollouts per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    add_batches(parser)
    add_loading(parser)
    parser.add_argument("--no-progress", action="store_true")
    return parser
