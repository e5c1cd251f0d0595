"""Cells of an echelon with made-up numbers: collapse with depth, at a pace of each loss."""

import math
import random

from entropyfloor.echelon.rungs import Plan

LOSSES = (
    "ce",
    "sed",
    "gem",
    "bounded-probability",
    "label-smoothing",
    "entropy-bonus",
    "floor-uniform",
    "floor-anchored",
)
DEPTHS = (2.0, 6.0, 20.0, 40.0, 60.0)


def measures(entropy, pass_at_1, reach, *, half=0.03, held_out=True):
    """``reach`` in [0, 1]: how far pass@10 gets from pass@1 to 1."""
    at_10 = pass_at_1 + reach * (1.0 - pass_at_1)
    at_k = {"1": pass_at_1, "8": pass_at_1 + 0.9 * (at_10 - pass_at_1), "10": at_10}
    wrong, right = 1.0 - at_k["8"], 0.6 * pass_at_1 * (1.0 - reach)
    found = {
        "entropy_nats": entropy,
        "pass_at_1": pass_at_1,
        "pass_at_k": at_k,
        "degenerate_fraction": wrong + right,
        "degenerate_all_wrong": wrong,
        "degenerate_all_right": right,
        "p_hat_over_p_star": pass_at_1 / 0.083,
        "unique_fraction": min(1.0, 0.1 + entropy / 3),
        "held_out_loss": 0.5 + 0.5 * (1 - reach),
        "truncated_fraction": 0.0,
        "verdict": "ready" if entropy > 0.18 and wrong + right < 0.5 else "at risk",
        "intervals": {
            f"pass_at_{k}": [max(0.0, v - half), min(1.0, v + half)] for k, v in at_k.items()
        },
    }
    if not held_out:
        del found["held_out_loss"]
    return found


def made_up(losses=LOSSES, depths=DEPTHS, seeds=(0, 1, 2), *, steps=(50, 100, 150), noise=0.02):
    """``(cells, base)``: the later a loss stands in the list, the slower it collapses."""
    cells = []
    for place, loss in enumerate(losses):
        for depth in depths:
            for seed in seeds:
                rng = random.Random(f"{loss} {depth} {seed}")
                pace = math.log(1 + depth) / (4.2 + 0.5 * place)
                entropy = 1.2 * math.exp(-2.2 * pace)
                reach = max(0.05, 0.85 - 0.7 * pace + rng.gauss(0, noise))
                rate = min(0.9, 0.15 + 0.3 * pace + rng.gauss(0, noise / 2) + 0.03 * seed)
                after = {
                    str(step): measures(
                        entropy / (1 + 0.5 * index),
                        min(0.95, rate + 0.12 + 0.02 * index),
                        max(0.02, reach - 0.03 * index),
                    )
                    for index, step in enumerate(steps)
                }
                cells.append(
                    {
                        "loss": loss,
                        "seed": seed,
                        "depth": depth,
                        "before": measures(entropy, rate, reach),
                        "after": after,
                        "seconds": {"screening": 3.0, "grpo": 60.0},
                    }
                )
    base = {seed: measures(2.7, 0.06 + 0.01 * seed, 0.6) for seed in seeds}
    return cells, base


def plan_of(cells, **changes):
    """The plan of what the cells show."""
    shown = {
        "losses": dict.fromkeys(cell["loss"] for cell in cells),
        "depths": sorted({float(cell["depth"]) for cell in cells}),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "grpo_steps": sorted({int(step) for cell in cells for step in cell.get("after", {})}),
    }
    numbers = {"name": "made up", "outcome_k": 10, "group_size": 8, "tau_h": 0.18}
    return Plan(**numbers | {name: tuple(values) for name, values in shown.items()} | changes)
