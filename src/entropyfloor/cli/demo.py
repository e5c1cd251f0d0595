"""``entropyfloor demo``: an echelon on a recipe that comes with the package."""

import argparse
from collections.abc import Sequence

from entropyfloor.cli import echelon


def main(argv: Sequence[str]) -> int:
    """Run or continue the demo. Returns what ``entropyfloor echelon`` does; errors are raised."""
    parser = argparse.ArgumentParser(
        prog="entropyfloor demo",
        description="Train a model with several losses at several depths on three-term sums, "
        "screen every checkpoint, and write tables and a plot. A run that was stopped goes on "
        "where it was.",
        epilog="Every option of `entropyfloor echelon` works too: --losses ce, --set depths=[1,2] "
        "data.train_problems=12 losses.gem.loss=gem sft.learning_rate=1.0e-4, ...",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the same path with a small model that is built first, and one-digit sums",
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="an instruction-tuned model with a chat template (default: SmolLM2-135M-Instruct from "
        "its wheel; with --quick the small one)",
    )
    parser.add_argument(
        "--output_dir",
        "--output-dir",
        metavar="DIR",
        help="default: runs/demo, or runs/demo-quick with --quick",
    )
    arguments, rest = parser.parse_known_args(argv)

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.echelon.recipe import SHIPPED

    recipe = SHIPPED / ("demo_quick.yaml" if arguments.quick else "demo.yaml")
    words = [str(recipe), *rest]
    if arguments.output_dir is not None:
        words += ["--output_dir", arguments.output_dir]
    if arguments.model is not None:
        words += ["--set", f"model={arguments.model!r}"]
    return echelon.main(words)
