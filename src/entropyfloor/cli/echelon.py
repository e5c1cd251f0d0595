"""``entropyfloor echelon RECIPE``: losses at growing depth, before and after RL, compared."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from entropyfloor.cli.options import parse
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rollouts.options import Output, flag

FAILED = 1


@dataclass(frozen=True)
class _Flags:
    """What the command alone has."""

    workers: int = flag(1, "stages at once")
    executor: Literal["serial", "processes", "ray"] | None = flag(
        None, "default: serial with one worker, else processes, each with a GPU of its own"
    )
    keep: Literal["rungs", "all", "nothing"] = flag(
        "rungs", "weights that stay on disk: SFT's, those after GRPO too, or none"
    )
    retries: int = flag(1, "further tries of a stage that failed")
    finished: list[str] = flag(
        [],
        "cells.json of other runs: what they finished under the same settings is not run again",
        metavar="FILE",
    )
    losses: list[str] | None = flag(None, "only these of the recipe's")
    seeds: list[int] | None = flag(None, "in place of the recipe's")
    set: list[str] = flag(
        [],
        "settings in place of the recipe's, in YAML: depths=[1,2] data.test=50",
        action="extend",
        metavar="KEY=VALUE",
    )
    grpo: bool = flag(True, "the recipe's grpo section, if it has one")


def main(argv: Sequence[str]) -> int:
    """Run a recipe, or say how far one is.

    Returns:
        1 if stages failed, else 0; errors are raised.

    """
    if argv and argv[0] in ("status", "report"):
        return {"status": _status, "report": _report}[argv[0]](argv[1:])
    flags, output, recipe_path = parse(
        argv,
        *(_Flags, Output),
        verb="echelon",
        description="Train each loss of a recipe to growing depth, screen every rung, send it "
        "through the same GRPO budget if the recipe has one, evaluate, compare. What is "
        "finished is not run again. `entropyfloor echelon status DIR` says how far a run is, "
        "`entropyfloor echelon report CELLS.json` draws the report of a finished one anew.",
        epilog="Exit code: 1 a stage failed in every try, 0 none did, 2 usage or data error. "
        "Without --output_dir a run goes into runs/NAME of the recipe.",
        positional=("RECIPE", "YAML file; see docs/echelon.md"),
    )
    # Must be set before the tokenizers library is used; its warning about forks is noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.echelon.recipe import load_recipe
    from entropyfloor.echelon.run import run_echelon, take_in

    recipe = load_recipe(_content(recipe_path, flags))
    folder = Path("runs") / recipe.name if output.output_dir is None else output.folder
    console = console_for_tables()

    def say(line: str) -> None:
        print_line(console, line)

    take_in(folder, flags.finished)
    result = run_echelon(
        recipe,
        folder,
        executor=flags.executor,
        workers=flags.workers,
        keep=flags.keep,
        retries=flags.retries,
        say=say,
        progress=output.progress,
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


def _content(recipe_path: str, flags: _Flags) -> dict[str, Any]:
    """The recipe as the options change it."""
    from entropyfloor.echelon.recipe import read_recipe

    content = read_recipe(recipe_path)
    for words in flags.set:
        _set(content, words)
    if flags.seeds is not None:
        content["seeds"] = flags.seeds
    losses = content.get("losses")
    if flags.losses is not None and isinstance(losses, dict):
        unknown = [name for name in flags.losses if name not in losses]
        if unknown:
            raise ValueError(
                f"--losses {' '.join(unknown)}: the recipe has {', '.join(losses)}; name some of "
                "them"
            )
        content["losses"] = {name: losses[name] for name in flags.losses}
    if not flags.grpo:
        content["grpo"] = None
    return content


def _set(content: dict[str, Any], words: str) -> None:
    """Apply ``KEY.KEY=YAML`` to a recipe."""
    from entropyfloor.echelon.recipe import read_yaml

    path, equals, text = words.partition("=")
    *parents, last = path.split(".")
    value = read_yaml(text, f"--set {words}: {text!r}")
    if not equals or not all([*parents, last]):
        raise ValueError(f"--set {words}: write KEY=VALUE, such as data.test=50 or depths=[1,2]")
    for key in parents:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {words}: {key} is {inner!r}, which has no settings inside it")
        content = inner
    content[last] = value


def _report(argv: Sequence[str]) -> int:
    output, cells = parse(
        argv,
        Output,
        verb="echelon report",
        description="Write an echelon's report anew.",
        positional=("CELLS.json", "that a run wrote"),
        defaults={"output_dir": "."},
    )
    from entropyfloor.echelon.run import report_of
    from entropyfloor.echelon.table import echelon_terminal

    comparison = report_of(cells, output.folder)
    console = console_for_tables()
    for part in echelon_terminal(comparison, console.width):
        console.print(part)
    files = [output.folder / name for name in RESULTS if name.startswith("echelon.")]
    print_line(console, f"written: {', '.join(map(str, files))}")
    return 0


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
