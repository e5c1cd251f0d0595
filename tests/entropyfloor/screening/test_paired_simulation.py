"""Paired screenings of two nets whose exact differences are known: do the intervals hold?"""

import numpy as np
import pytest
from enumerable_model import PROMPTS, Population

from entropyfloor.screening.paired import compare_paired

SAMPLES, SIZE = 8, 48


@pytest.fixture(scope="module")
def populations():
    return [Population(moved=share) for share in (0.0, 0.15)]


def exact_values(population):
    rate = population.rate
    return {
        "entropy_nats": population.nats.sum() / population.tokens.sum(),
        **{f"pass_at_{k}": (1 - (1 - rate) ** k).mean() for k in range(1, SAMPLES + 1)},
        "degenerate_fraction": (rate**SAMPLES + (1 - rate) ** SAMPLES).mean(),
    }


def covered(populations, runs):
    """Shares of screenings whose interval, and whose whole band, hold the exact differences."""
    first, second = map(exact_values, populations)
    truth = {name: second[name] - first[name] for name in first}
    solved = [1 - (1 - population.rate) ** SAMPLES for population in populations]
    both = (solved[0] * solved[1]).sum()
    truth |= {"kept": both / solved[0].sum(), "new": 1 - both / solved[1].sum()}
    rng = np.random.default_rng(1)
    inside = dict.fromkeys([*truth, "band"], 0)
    for run in range(runs):
        prompts = rng.integers(len(PROMPTS), size=SIZE)
        sides = [(f"net {p.moved}", p.screen(prompts, SAMPLES, rng)) for p in populations]
        found = compare_paired(*sides, group_size=SAMPLES, ks=range(1, SAMPLES + 1), seed=run)
        for d in found.differences:
            inside[d.metric] += int(d.interval.low <= truth[d.metric] <= d.interval.high)
        for name in ("kept", "new"):
            low, high = getattr(found.coverage, f"{name}_interval")
            inside[name] += int(low <= truth[name] <= high)
        inside["band"] += all(
            p.band.low <= truth[f"pass_at_{p.k}"] <= p.band.high for p in found.band
        )
    shares = {name: count / runs for name, count in inside.items()}
    print(f"\n{runs} pairs of {SIZE} prompts; coverage {shares}")
    print(f"true differences {truth}")
    return shares


def test_coverage(populations):
    shares = covered(populations, 150)
    assert all(share >= 0.88 for share in shares.values()), shares


@pytest.mark.slow
def test_coverage_of_many(populations):
    shares = covered(populations, 1500)
    assert all(0.93 <= share <= 0.97 for name, share in shares.items() if name != "band"), shares
    assert shares["band"] >= 0.93, shares


@pytest.mark.slow
def test_an_unchanged_checkpoint_is_rarely_ahead_of_itself(populations):
    """No k at all, in 95 of 100 pairs of screenings of one net."""
    rng = np.random.default_rng(2)
    runs, ahead, lost, expected = 400, 0, 0, 0.0
    for run in range(runs):
        prompts = rng.integers(len(PROMPTS), size=SIZE)
        sides = [(name, populations[0].screen(prompts, SAMPLES, rng)) for name in "ab"]
        found = compare_paired(*sides, group_size=SAMPLES, seed=run)
        ahead += bool(found.first_ahead or found.second_ahead)
        lost += len(found.coverage.lost)
        expected += found.coverage.lost_by_chance
    print(f"\nahead in {ahead / runs:.3f}; lost {lost / runs:.2f}, by chance {expected / runs:.2f}")
    assert ahead / runs <= 0.07
    assert lost == pytest.approx(expected, rel=0.1)
