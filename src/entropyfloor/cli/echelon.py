"""``entropyfloor echelon RECIPE``: losses at growing depth, before and after RL, compared."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropyfloor.render.terminal import console_for_tables, print_line

FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Run a recipe, or say how far one is.

    Returns:
        1 if stages failed, else 0; errors are raised.

    """
    if argv and argv[0] == "status":
        return _status(argv[1:])
    arguments = _parser().parse_args(argv)
    # Must be set before the tokenizers library is used; its warning about forks is noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.echelon.recipe import load_recipe
    from entropyfloor.echelon.run import run_echelon

    recipe = load_recipe(_content(arguments))
    folder = Path("runs") / recipe.name if arguments.output_dir is None else arguments.output_dir
    console = console_for_tables()

    def say(line: str) -> None:
        print_line(console, line)

    result = run_echelon(
        recipe,
        folder,
        executor=arguments.executor,
        workers=arguments.workers,
        keep=arguments.keep,
        retries=arguments.retries,
        say=say,
        progress=not arguments.no_progress,
    )
    if result.comparison is not None:
        from entropyfloor.echelon.table import echelon_terminal
        from entropyfloor.screening.table import screening_table

        if recipe.grpo is None and len(result.screenings) == 1:
            console.print(screening_table(result.screenings[recipe.seeds[0]]).to_rich())
        for part in echelon_terminal(result.comparison, console.width):
            console.print(part)
        say(f"written: {', '.join(str(result.folder / name) for name in RESULTS)}")
    for failure in result.failures:
        say(f"failed: {failure.stage}: {failure.message}")
    return FAILED if result.failures else 0


RESULTS = (
    "echelon.html",
    "echelon.md",
    "echelon.json",
    "echelon.png",
    "screening.md",
    "cells.json",
)


def _content(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe as the options change it."""
    from entropyfloor.echelon.recipe import read_recipe

    content = read_recipe(arguments.recipe)
    for words in arguments.set or ():
        _set(content, words)
    if arguments.seeds is not None:
        content["seeds"] = arguments.seeds
    if arguments.losses is not None:
        losses = content.get("losses") or {}
        unknown = [name for name in arguments.losses if name not in losses]
        if unknown:
            raise ValueError(
                f"--losses {' '.join(unknown)}: the recipe has {', '.join(losses)}; name some of "
                "them"
            )
        content["losses"] = {name: losses[name] for name in arguments.losses}
    if arguments.no_grpo:
        content["grpo"] = None
    return content


def _set(content: dict[str, Any], words: str) -> None:
    """Apply ``KEY.KEY=YAML`` to a recipe."""
    import yaml

    path, equals, text = words.partition("=")
    *parents, last = path.split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {words}: {text!r} is not YAML: {error}") from error
    if not equals or not all([*parents, last]):
        raise ValueError(f"--set {words}: write KEY=VALUE, such as data.test=50 or depths=[1,2]")
    for key in parents:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {words}: {key} is {inner!r}, which has no settings inside it")
        content = inner
    content[last] = value


def _status(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="entropyfloor echelon status", description="How far an echelon is."
    )
    parser.add_argument("folder", metavar="DIR", help="its --output-dir")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    from entropyfloor.echelon.run import echelon_status
    from entropyfloor.render.table import Column, Table

    status = echelon_status(arguments.folder)
    failed = FAILED if status["failures"] else 0
    if arguments.json:
        print(json.dumps(status, indent=2))
        return failed
    states: dict[tuple[str, float], dict[int, str]] = {}
    for cell in status["cells"]:
        states.setdefault((cell["loss"], cell["depth"]), {})[cell["seed"]] = cell["state"]
    seeds = sorted({cell["seed"] for cell in status["cells"]})
    table = Table(
        f"{status['name']}: {status['done']} of {status['total']} cells",
        (
            Column("loss", "left"),
            Column("depth (epochs)"),
            *(Column(f"seed {seed}", "left") for seed in seeds),
        ),
        tuple(
            (loss, f"{depth:g}", *(row[seed] for seed in seeds))
            for (loss, depth), row in states.items()
        ),
    )
    console = console_for_tables()
    console.print(table.to_rich())
    left = status["remaining_seconds"]
    if left:
        console.print(f"about {left / 60:.0f} minutes of work are left, one cell after another")
    console.print("a run is working on it" if status["running"] else "no run is working on it")
    for failure in status["failures"]:
        print_line(console, f"failed: {failure['stage']}: {failure['message']}")
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor echelon",
        description="Train each loss of a recipe to growing depth, screen every rung, send it "
        "through the same GRPO budget if the recipe has one, evaluate, compare. What is "
        "finished is not run again. "
        "`entropyfloor echelon status DIR` says how far a run is.",
        epilog="Exit code: 1 a stage failed in every try, 0 none did, 2 usage or data error.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file; see docs/echelon.md")
    parser.add_argument("--output-dir", metavar="DIR", help="default: runs/NAME of the recipe")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="stages at once (default: 1)"
    )
    parser.add_argument(
        "--executor",
        choices=["serial", "processes", "ray"],
        help="default: serial with one worker, else processes, each with a GPU of its own",
    )
    parser.add_argument(
        "--keep",
        choices=["rungs", "all", "nothing"],
        default="rungs",
        help="weights that stay on disk: SFT's, those after GRPO too, or none (default: rungs)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=1,
        metavar="N",
        help="further tries of a stage that failed (default: 1)",
    )
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="only these of the recipe's")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="in place of its seeds")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="settings in place of the recipe's, in YAML: depths=[1,2] data.test=50",
    )
    parser.add_argument("--no-grpo", action="store_true", help="leave out its grpo section")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
