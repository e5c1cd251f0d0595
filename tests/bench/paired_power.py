"""How many prompts a difference needs: paired intervals against unpaired ones, and the figure.

    python tests/bench/paired_power.py --plot docs/paired.png

Pass rates of 216 prompts are those of a net whose rollouts can be enumerated. The second checkpoint
has the same, each moved by N(0.4, 0.4) on the log-odds scale: a little better, not on every prompt.
The share of screenings that find the true difference in pass@1, at 8 rollouts per prompt:

    paired     the interval of the difference, prompts of both drawn together, leaves 0 out
    unpaired   the interval of the difference with each one's prompts drawn on their own
    apart      the two checkpoints' own intervals do not overlap
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "entropyfloor" / "screening"))

from enumerable_model import PROMPTS, Population

from entropyfloor.render.figure import Chart, series
from entropyfloor.stats.intervals import (
    bootstrap_interval,
    expanded_tail,
    resampled_ratios,
    share_difference_interval,
)

SAMPLES = 8
SIZES = (12, 24, 48, 96, 192, 384)


def unpaired_interval(first, second, seed):
    """As if the two had been screened on different prompts."""
    ones = np.ones(len(first))
    draws = resampled_ratios(second, ones, seed) - resampled_ratios(first, ones, seed + 1)
    tail = expanded_tail(len(first))
    return np.quantile(draws, [tail, 1 - tail])


def power(rates, prompts, runs):
    found = dict.fromkeys(("paired", "unpaired", "apart"), 0)
    rng = np.random.default_rng(prompts)
    for run in range(runs):
        drawn = rng.integers(len(PROMPTS), size=prompts)
        first, second = (rng.binomial(SAMPLES, side[drawn]) / SAMPLES for side in rates)
        low, high = share_difference_interval((second - first).tolist(), seed=run)
        found["paired"] += low > 0 or high < 0
        low, high = unpaired_interval(first, second, 2 * run)
        found["unpaired"] += low > 0 or high < 0
        a, b = (bootstrap_interval(side, seed=run) for side in (first, second))
        found["apart"] += a.high < b.low or b.high < a.low
    return {name: count / runs for name, count in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    first = Population(moved=0.0).rate.clip(1e-3, 1 - 1e-3)
    odds = np.log(first / (1 - first)) + np.random.default_rng(0).normal(0.4, 0.4, len(first))
    rates = [first, 1 / (1 + np.exp(-odds))]
    print(
        f"true pass@1 {rates[0].mean():.3f} and {rates[1].mean():.3f}; correlation over prompts "
        f"{np.corrcoef(*rates)[0, 1]:.2f}"
    )
    rows = {size: power(rates, size, arguments.runs) for size in SIZES}
    for size, row in rows.items():
        print(size, row, flush=True)
    if arguments.plot is not None:
        chart = Chart(520, 300, "share of screenings that find the difference")
        axes = chart.axes(below="prompts (logarithmic)", beside="finds the difference")
        lines = []
        for place, name in enumerate(("paired", "unpaired", "apart")):
            (line,) = axes.plot(SIZES, [rows[s][name] for s in SIZES], **series(place))
            words = "own intervals do not overlap" if name == "apart" else name
            lines.append((line, words))
        axes.set(xscale="log", ylim=(0.0, 1.03))
        axes.set_xticks(SIZES, [str(s) for s in SIZES])
        axes.minorticks_off()
        chart.legend(lines)
        chart.save(arguments.plot)


if __name__ == "__main__":
    main()
