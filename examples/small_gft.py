"""Group fine-tuning on the small model: against CE and DFT, its ablations, and before GRPO.

    python examples/small_gft.py --output-dir runs/gft

First table: the base trained with CE, DFT and GFT at equal numbers of tokens with a loss, CE and
DFT also at GFT's learning rate, GFT also without advantages, rectification or teacher. Second
table: SFT, GFT, and SFT then GFT, at equal tokens, each followed by the same GRPO. The teacher is
the base after two epochs of SFT and GRPO. Means of the seeds; every seed's numbers are in the
folder. A second run in the same folder goes on where the first was stopped.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from entropyfloor.echelon.small_gft import GFTSettings, SmallGFT
from entropyfloor.echelon.small_grpo import GRPOTraining
from entropyfloor.echelon.small_run import SmallRun, SmallSettings
from entropyfloor.io import save_json

SFT_ARMS = ("ce", "dft")
GFT_ARMS: dict[str, dict[str, Any]] = {
    "gft": {},
    "gft without advantages": {"advantages": False},
    "gft without rectification": {"rectification": False},
    "gft without a teacher": {"num_teacher": 0},
}
COLUMNS = ("tokens", "entropy", "pass@1", "pass@8", "pass@10", "degenerate", "KL to base")
PIPELINES = ("SFT → GRPO", "GFT → GRPO", "SFT → GFT → GRPO")


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[8, 24, 64], help="tokens, in epochs of SFT"
    )
    parser.add_argument("--pipeline-seeds", type=int, nargs="*", default=[0])
    parser.add_argument(
        "--pipeline-budgets", type=float, nargs="+", default=[8, 64], help="tokens before GRPO"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of GFT")
    parser.add_argument("--pretraining-steps", type=int, default=325)
    parser.add_argument("--grpo-steps", type=int, default=150)
    parser.add_argument("--test-problems", type=int, default=400)
    options = parser.parse_args(arguments)

    settings = SmallSettings(
        pretraining_steps=options.pretraining_steps,
        test_problems=options.test_problems,
        grpo=GRPOTraining(steps=options.grpo_steps, save_every=max(1, options.grpo_steps // 3)),
    )
    console = Console()
    measured: dict[str, list[dict[str, Any]]] = {}
    piped: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        run = SmallRun(options.output_dir, seed=seed, settings=settings)
        stages = SmallGFT(run, GFTSettings(learning_rate=options.learning_rate))
        for name, found in compare(stages, options.budgets).items():
            measured.setdefault(name, []).append(found)
        save_json(options.output_dir / "arms.json", measured)
    console.print(arms_table(measured))
    for seed in options.pipeline_seeds:
        run = SmallRun(options.output_dir, seed=seed, settings=settings)
        stages = SmallGFT(run, GFTSettings(learning_rate=options.learning_rate))
        for budget in options.pipeline_budgets:
            for name, cell in pipelines(stages, budget).items():
                piped.setdefault(name, []).append(cell)
                save_json(options.output_dir / "pipelines.json", piped)
    if piped:
        console.print(pipelines_table(piped))


def compare(stages: SmallGFT, budgets: list[float]) -> dict[str, dict[str, Any]]:
    """``ARM, budget`` -> measures, of one seed; teacher and base beside them."""
    run = stages.run
    found = {
        "base": stages.measure(run.base(), "base"),
        "teacher": stages.measure(stages.teacher, "teacher"),
    }
    per_epoch = 3 * len(run.task.demonstrations)  # two digits and the end of sequence
    rates = (run.settings.sft_learning_rate, stages.settings.learning_rate)
    for loss, rate in ((loss, rate) for loss in SFT_ARMS for rate in dict.fromkeys(rates)):
        arm = f"{loss}, lr {rate:g}"
        checkpoints = run.sft(
            loss, budgets, name=f"{loss}-{rate:g}", options={"learning_rate": rate}
        )
        for budget, checkpoint in zip(budgets, checkpoints, strict=True):
            measures = stages.measure(checkpoint, checkpoint.name)
            found[f"{arm}, {budget:g}"] = {**measures, "tokens": per_epoch * budget}
    for arm, changes in GFT_ARMS.items():
        name = arm.replace(" ", "-")
        checkpoints = stages.gft(name, budgets, options=changes)
        for budget, checkpoint in zip(budgets, checkpoints, strict=True):
            measures = stages.measure(checkpoint, checkpoint.name)
            tokens = sum(measures["training"]["tokens"].values())
            found[f"{arm}, {budget:g}"] = {**measures, "tokens": tokens}
    return found


def pipelines(stages: SmallGFT, budget: float) -> dict[str, dict[str, Any]]:
    """Three ways to spend the tokens of ``budget`` before GRPO, of one seed."""
    run, words = stages.run, f"{budget:g}"
    (sft,) = run.sft("ce", [budget], name=f"pipeline-{words}-sft")
    (gft,) = stages.gft(f"pipeline-{words}-gft", [budget])
    (half,) = run.sft("ce", [budget / 2], name=f"pipeline-{words}-half")
    (both,) = stages.gft(f"pipeline-{words}-sft-gft", [budget / 2], start=half)
    starts = {"sft": sft, "gft": gft, "sft-gft": both}
    return {
        f"{title}, {words}": run.cell(start, f"pipeline-{words}-{short}")
        for title, (short, start) in zip(PIPELINES, starts.items(), strict=True)
    }


def arms_table(measured: dict[str, list[dict[str, Any]]]) -> Table:
    """Means of the seeds."""
    table = Table(title="means of the seeds, held-out problems")
    table.add_column("arm, tokens in epochs of SFT")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, seeds in measured.items():
        values = [
            [
                found.get("tokens", 0.0),
                found["entropy_nats"],
                found["pass_at_1"],
                found["pass_at_k"]["8"],
                found["pass_at_k"]["10"],
                found["degenerate_fraction"],
                found["kl_to_base"],
            ]
            for found in seeds
        ]
        tokens, *rest = (mean(column) for column in zip(*values, strict=True))
        table.add_row(name, f"{tokens:.0f}" if tokens else "–", *(f"{v:.3f}" for v in rest))
    return table


def pipelines_table(piped: dict[str, list[dict[str, Any]]]) -> Table:
    """Before GRPO, and after it: the best checkpoint, and the last."""
    table = Table(title="before GRPO | after it: best checkpoint, last checkpoint")
    table.add_column("pipeline, tokens before GRPO")
    for column in ("entropy", "pass@1", "pass@10", "degenerate"):
        table.add_column(column, justify="right")
    for column in ("best pass@1", "best pass@10", "last pass@1", "last pass@10"):
        table.add_column(column, justify="right")
    for name, cells in piped.items():
        values = []
        for cell in cells:
            before, last = cell["before"], cell["after"][max(cell["after"], key=int)]
            values.append(
                [
                    before["entropy_nats"],
                    before["pass_at_1"],
                    before["pass_at_k"]["10"],
                    before["degenerate_fraction"],
                    cell["peak"]["pass_at_1"]["value"],
                    cell["peak"]["pass_at_10"]["value"],
                    last["pass_at_1"],
                    last["pass_at_k"]["10"],
                ]
            )
        table.add_row(name, *(f"{mean(column):.3f}" for column in zip(*values, strict=True)))
    return table


if __name__ == "__main__":
    main()
