"""Ranks, intervals and p-values against what is written out here by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from entropyfloor.echelon.predictors import predictor_ranks, seed_interval
from entropyfloor.echelon.rungs import read_rungs
from made_up_echelon import made_up, measures, plan_of


def ranks_of(cells, **settings):
    plan = plan_of(cells, **settings)
    rungs, _ = read_rungs(cells, plan)
    return {(r.outcome, r.scope, r.predictor): r for r in predictor_ranks(rungs, plan)}


def cells_of(entropies, reaches, *, seed=0, loss="ce"):
    """pass@1 is the same everywhere: only entropy and pass@10 after RL vary."""
    return [
        {
            "loss": loss,
            "seed": seed,
            "depth": float(depth + 1),
            "before": measures(entropy, 0.2, 0.5),
            "after": {"50": measures(0.1, 0.2, reach)},
        }
        for depth, (entropy, reach) in enumerate(zip(entropies, reaches, strict=True))
    ]


def rho(left, right):
    """Pearson's correlation of mean ranks, in float64."""

    def ranks(side):
        return [sum(v < x for v in side) + (sum(v == x for v in side) + 1) / 2 for x in side]

    a, b = np.array(ranks(left)), np.array(ranks(right))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


ENTROPY = ("peak_pass_at_10", "ce", "entropy_nats")


def test_rho_with_ties_by_seed_mean_and_pooled():
    x = {0: [0.9, 0.7, 0.7, 0.2], 1: [0.5, 0.4, 0.3, 0.1], 2: [0.8, 0.2, 0.6, 0.3]}
    y = {0: [0.8, 0.5, 0.4, 0.4], 1: [0.3, 0.9, 0.2, 0.1], 2: [0.7, 0.2, 0.2, 0.1]}
    cells = [c for seed in x for c in cells_of(x[seed], y[seed], seed=seed)]
    rank = ranks_of(cells)[ENTROPY]
    by_seed = {seed: rho(x[seed], y[seed]) for seed in x}
    assert rank.by_seed == pytest.approx(by_seed)
    values = list(by_seed.values())
    assert rank.mean == pytest.approx(sum(values) / 3)
    assert rank.pooled == pytest.approx(rho([*x[0], *x[1], *x[2]], [*y[0], *y[1], *y[2]]))
    assert rank.points == 12
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert rank.interval.low == pytest.approx(max(-1.0, rank.mean - half))
    assert rank.interval.high == pytest.approx(min(1.0, rank.mean + half))


def test_p_over_every_permutation_of_two_seeds():
    x = [[0.9, 0.7, 0.5, 0.2], [0.5, 0.4, 0.3, 0.1]]
    y = [[0.8, 0.5, 0.6, 0.4], [0.3, 0.9, 0.2, 0.1]]
    cells = [c for seed in (0, 1) for c in cells_of(x[seed], y[seed], seed=seed)]
    rank = ranks_of(cells)[ENTROPY]
    means = [
        (rho(x[0], one) + rho(x[1], other)) / 2
        for one in permutations(y[0])
        for other in permutations(y[1])
    ]
    extreme = sum(abs(mean) >= abs(rank.mean) - 1e-9 for mean in means)
    assert (rank.p_value, rank.method) == (pytest.approx(extreme / len(means)), "exact")


def test_p_over_random_permutations_agrees_with_an_independent_draw():
    rng = np.random.default_rng(3)
    x = rng.random((3, 6))
    y = 0.4 * x + rng.random((3, 6)) * 0.5
    cells = [c for seed in range(3) for c in cells_of(x[seed], y[seed], seed=seed)]
    rank = ranks_of(cells)[ENTROPY]
    drawn = [np.mean([rho(x[s], rng.permutation(y[s])) for s in range(3)]) for _ in range(2000)]
    p_value = np.mean(np.abs(drawn) >= abs(rank.mean) - 1e-9)
    assert rank.method == "permutation" and 0.02 < p_value < 0.9
    assert rank.p_value == pytest.approx(p_value, abs=4 * math.sqrt(p_value / 2000))


def test_seeds_that_are_better_throughout_do_not_move_the_mean():
    x, y = [0.9, 0.5, 0.2], [0.2, 0.3, 0.4]
    cells = cells_of(x, y) + cells_of([v + 1 for v in x], [v + 0.4 for v in y], seed=1)
    rank = ranks_of(cells)[ENTROPY]
    assert rank.mean == -1.0 and rank.pooled > 0


def test_equal_seeds_inside_the_scale_have_no_interval():
    assert seed_interval([0.5]) is None and seed_interval([0.8, 0.8, 0.8]) is None


@pytest.mark.parametrize(("count", "reach"), [(3, 2 * (1 - 0.025 ** (1 / 3))), (8, None)])
def test_seeds_that_agree_perfectly_do_not_prove_perfection(count, reach):
    interval = seed_interval([1.0] * count)
    reach = 2 * (1 - 0.025 ** (1 / count)) if reach is None else reach
    assert interval.high == 1.0 and interval.low == pytest.approx(1.0 - reach)
    turned = seed_interval([-1.0] * count)
    assert turned.low == -1.0 and turned.high == pytest.approx(reach - 1.0)


def test_too_little_is_said_to_be_too_little():
    rank = ranks_of(cells_of([0.9, 0.5], [0.2, 0.3]))[ENTROPY]
    assert (rank.mean, rank.pooled, rank.p_value, rank.points) == (None, None, None, 2)
    constant = ranks_of(cells_of([0.9, 0.5, 0.2], [0.3, 0.3, 0.3]))[ENTROPY]
    assert constant.mean is None and constant.pooled is None and constant.points == 3


def test_a_predictor_counts_where_it_was_measured():
    cells = cells_of([0.9, 0.7, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1])
    del cells[0]["before"]["held_out_loss"]
    ranks = ranks_of(cells)
    assert ranks["peak_pass_at_10", "ce", "held_out_loss"].points == 3
    assert ranks[ENTROPY].points == 4


def test_aim_is_turned_for_what_should_be_small():
    cells, _ = made_up(("ce",), noise=0.0)
    ranks = ranks_of(cells)
    entropy, degenerate = (
        ranks["peak_pass_at_10", "ce", name] for name in ("entropy_nats", "degenerate_fraction")
    )
    assert entropy.aim == entropy.mean > 0.9
    assert degenerate.mean < -0.9 and degenerate.aim == -degenerate.mean


def test_scopes_and_outcomes():
    cells, _ = made_up(("ce", "sed"))
    ranks = ranks_of(cells)
    assert {scope for _, scope, _ in ranks} == {None, "ce", "sed"}
    assert {outcome for outcome, _, _ in ranks} == {
        f"{when}_pass_at_{k}" for when in ("peak", "last") for k in (1, 10)
    }
    assert ranks["peak_pass_at_10", None, "pass_at_1"].points == 30
    # p-hat over p* is pass@1 divided by a constant.
    same = [ranks["peak_pass_at_10", None, n].mean for n in ("pass_at_1", "p_hat_over_p_star")]
    assert same[0] == same[1]
