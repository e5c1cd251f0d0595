"""What beats what before RL, against the definition written out again."""

import itertools
import random

from entropyfloor.echelon.compare import compare
from made_up_echelon import plan_of


def cell(loss, depth, entropy, pass_at_1, pass_at_10, degenerate, *, seed=0):
    before = {
        "entropy_nats": entropy,
        "pass_at_1": pass_at_1,
        "pass_at_k": {"1": pass_at_1, "10": pass_at_10},
        "degenerate_fraction": degenerate,
    }
    return {"loss": loss, "seed": seed, "depth": depth, "before": before}


def frontier_of(cells):
    comparison = compare(cells, {}, plan_of(cells)).frontier
    return {(rung.loss, rung.depth): rung.beaten_by for rung in comparison}


def test_no_less_of_anything_and_more_of_something():
    frontier = frontier_of(
        [
            cell("ce", 1.0, 0.3, 0.4, 0.8, 0.2),
            cell("ce", 2.0, 0.1, 0.6, 0.8, 0.5),
            cell("gem", 1.0, 0.3, 0.4, 0.8, 0.3),  # as CE, more degenerate groups
            cell("gem", 2.0, 0.3, 0.4, 0.8, 0.2),  # exactly as CE: neither beats the other
            cell("sed", 1.0, 0.2, 0.7, 0.8, 0.5),  # above CE at 2
        ]
    )
    beaten = {rung: [(b.loss, b.depth) for b in by] for rung, by in frontier.items()}
    assert beaten == {
        ("ce", 1.0): [],
        ("ce", 2.0): [("sed", 1.0)],
        ("gem", 1.0): [("ce", 1.0), ("gem", 2.0)],
        ("gem", 2.0): [],
        ("sed", 1.0): [],
    }


def test_seeds_are_compared_where_both_have_them():
    frontier = frontier_of(
        [
            cell("ce", 1.0, 0.2, 0.4, 0.8, 0.3),
            cell("ce", 1.0, 0.2, 0.4, 0.8, 0.3, seed=1),
            cell("ce", 1.0, 0.9, 0.9, 0.9, 0.0, seed=2),  # a seed that the other does not have
            cell("gem", 1.0, 0.4, 0.6, 0.9, 0.1),
            cell("gem", 1.0, 0.1, 0.4, 0.8, 0.3, seed=1),  # behind by itself, not in the mean
        ]
    )
    (beater,) = frontier["ce", 1.0]
    assert (beater.loss, beater.ahead, beater.seeds) == ("gem", 1, 2)
    assert frontier["gem", 1.0] == ()


def test_at_random_against_the_definition():
    rng = random.Random(0)
    rungs = {
        (loss, depth): [rng.choice((0.1, 0.2, 0.3)) for _ in range(4)]
        for loss, depth in itertools.product("abcd", (1.0, 2.0, 3.0))
    }
    frontier = frontier_of([cell(*rung, *values) for rung, values in rungs.items()])
    for rung, (entropy, one, ten, degenerate) in rungs.items():
        better = {
            other
            for other, (h, p1, p10, d) in rungs.items()
            if h >= entropy and p1 >= one and p10 >= ten and d <= degenerate
            if (h, p1, p10, d) != (entropy, one, ten, degenerate)
        }
        assert {(b.loss, b.depth) for b in frontier[rung]} == better
    assert any(not by for by in frontier.values()) and any(frontier.values())


def test_one_loss_has_no_frontier_and_an_unmeasured_k_is_left_out():
    cells = [cell("ce", 1.0, 0.3, 0.4, 0.8, 0.2), cell("gem", 1.0, 0.3, 0.4, 0.7, 0.2)]
    assert frontier_of(cells[:1]) == {}
    assert frontier_of(cells)["gem", 1.0] != ()
    del cells[1]["before"]["pass_at_k"]["10"]
    assert frontier_of(cells) == {("ce", 1.0): (), ("gem", 1.0): ()}
