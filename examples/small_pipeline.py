"""SFT, screening, GRPO, verdict: the whole way, in minutes, on two CPU cores.

    python examples/small_pipeline.py --output-dir runs/small

With --depths 2 6 12 20 60 --entropy-floor 0.7 --seed 0 1 2 3 4 the deepest checkpoint is also
trained with a floor and stands beside the whole ladder, in five seeds.

A character model of 0.34 M parameters is pretrained on sums whose answers are mostly random, then
fine-tuned on 100 worked ones: briefly, and for long. Both checkpoints are screened, both go through
the same GRPO under a collapse monitor, and what comes out is screened again. The table shows what
the screen said before RL beside what RL made of it; several seeds end with their means. A second
run in the same folder goes on where the first was stopped.
"""

import argparse
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from entropyfloor import CollapseMonitor
from entropyfloor.echelon.small_grpo import GRPOTraining
from entropyfloor.echelon.small_run import SmallRun, SmallSettings
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS

BEFORE = ("entropy", "pass@1", "pass@10", "degenerate", "verdict")
AFTER = ("pass@1 after", "pass@10 after", "stage 2")


def main(arguments: list[str] | None = None) -> None:
    """Run the pipeline at the given depths and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 60], help="epochs of SFT")
    parser.add_argument("--loss", default="ce", help="any that SEDConfig knows")
    parser.add_argument(
        "--entropy-floor", type=float, help="also train the deepest with this floor, nats"
    )
    parser.add_argument("--floor-place", default="onset_anchor", help="where the entropy goes")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one or more")
    parser.add_argument("--pretraining-steps", type=int, default=325)
    parser.add_argument("--grpo-steps", type=int, default=75)
    parser.add_argument("--grpo-learning-rate", type=float, default=4e-4)
    parser.add_argument("--test-problems", type=int, default=400)
    options = parser.parse_args(arguments)

    settings = SmallSettings(
        pretraining_steps=options.pretraining_steps,
        test_problems=options.test_problems,
        grpo=GRPOTraining(
            steps=options.grpo_steps,
            save_every=max(1, options.grpo_steps // 3),
            learning_rate=options.grpo_learning_rate,
        ),
    )
    console = Console()
    cells = []
    for seed in options.seed:
        run = SmallRun(options.output_dir, seed=seed, settings=settings)
        found = [
            run.cell(checkpoint, checkpoint.name, callbacks=[CollapseMonitor("warn")])
            for checkpoint in train(run, options)
        ]
        show(found, console, f"seed {seed}: before RL (screened) | after GRPO (best checkpoint)")
        cells += found
    if len(options.seed) > 1:
        compare(cells, console)


def train(run: SmallRun, options: argparse.Namespace) -> list[Path]:
    """The ladder of one seed, and its deepest rung with a floor if one is asked for."""
    checkpoints = run.sft(options.loss, options.depths)
    if options.entropy_floor is None:
        return checkpoints
    floor = {
        "entropy_floor": options.entropy_floor,
        "floor_place": options.floor_place,
        "floor_probe_prompts": 64,
        "floor_probe_tokens": MAX_NEW_TOKENS,
        "floor_probe_steps": 20,
    }
    name = f"{options.loss}-{options.floor_place}-{options.entropy_floor:g}"
    return checkpoints + run.sft(options.loss, options.depths[-1:], name=name, options=floor)


def show(cells: list[dict], console: Console, title: str) -> None:
    """One line per checkpoint: the screen before RL, and the best checkpoint after it."""
    table = Table(title=title)
    table.add_column("checkpoint")
    for column in (*BEFORE, *AFTER):
        table.add_column(column, justify="right")
    for cell in cells:
        before, peak = cell["before"], cell["peak"]
        table.add_row(
            cell["name"],
            f"{before['entropy_nats']:.3f}",
            f"{before['pass_at_1']:.3f}",
            f"{before['pass_at_k']['10']:.3f}",
            f"{before['degenerate_fraction']:.2f}",
            before["verdict"],
            f"{peak['pass_at_1']['value']:.3f}",
            f"{peak['pass_at_10']['value']:.3f}",
            cell["stage_two"]["verdict"],
        )
    console.print(table)
    first = max(cells, key=lambda cell: cell["before"]["pass_at_1"])
    best = max(cells, key=lambda cell: cell["peak"]["pass_at_10"]["value"])
    least = min(cells, key=lambda cell: cell["before"]["degenerate_fraction"])
    console.print(
        f"Highest pass@1 before RL: {first['name']}. Fewest degenerate groups: {least['name']}. "
        f"Highest pass@10 after RL: {best['name']}."
    )


def compare(cells: list[dict], console: Console) -> None:
    """One line per checkpoint over all seeds: means, and pass@10 after GRPO of each seed."""
    table = Table(title="means over seeds | after GRPO (best checkpoint)")
    for column in ("checkpoint", *BEFORE[:4], *AFTER[:2], "pass@10 after, by seed"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for name in dict.fromkeys(cell["name"] for cell in cells):
        of_name = [cell for cell in cells if cell["name"] == name]
        before = [cell["before"] for cell in of_name]
        after = [cell["peak"]["pass_at_10"]["value"] for cell in of_name]
        means = (
            mean(b["entropy_nats"] for b in before),
            mean(b["pass_at_1"] for b in before),
            mean(b["pass_at_k"]["10"] for b in before),
            mean(b["degenerate_fraction"] for b in before),
            mean(cell["peak"]["pass_at_1"]["value"] for cell in of_name),
            mean(after),
        )
        table.add_row(
            name, *(f"{value:.3f}" for value in means), " ".join(f"{value:.3f}" for value in after)
        )
    console.print(table)


if __name__ == "__main__":
    main()
