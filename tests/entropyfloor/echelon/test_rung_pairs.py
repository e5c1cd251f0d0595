"""Differences of rungs, problem by problem, by hand."""

import numpy as np
import pytest

from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import compare
from entropyfloor.echelon.page import echelon_html
from entropyfloor.echelon.table import pairs_table
from made_up_echelon import measures, plan_of

SAMPLES, TOKENS = 10, 20


def measured(passed, entropy):
    """Each problem with so many of ten rollouts right, and the same entropy a token."""
    count = len(passed)
    return {
        **measures(entropy, sum(passed) / SAMPLES / count, 0.5),
        "prompt_results": {
            "prompt_indices": list(range(count)),
            "num_samples": [SAMPLES] * count,
            "num_tokens": [TOKENS] * count,
            "entropy_sums": [TOKENS * entropy] * count,
            "num_passed": list(passed),
        },
    }


def cell(loss, seed, before, after):
    return {
        "loss": loss,
        "seed": seed,
        "depth": 1.0,
        "before": measured(before, 0.1 if loss == "ce" else 0.3),
        "after": {"50": measured(after, 0.05)},
    }


CELLS = [
    cell("ce", 0, [0, 10, 10], [0, 10, 10]),
    cell("floor", 0, [2, 8, 6], [5, 10, 10]),
    cell("ce", 1, [1, 9], [0, 10]),
    cell("floor", 1, [1, 7], [3, 9]),
]


def differences(cells, contrast, loss="floor"):
    result = compare(cells, {}, plan_of(cells))
    (pair,) = (p for p in result.pairs if (p.loss, p.contrast) == (loss, contrast))
    return pair, {d.metric: d for d in pair.differences}


def test_against_the_reference_problems_of_all_seeds_are_pooled():
    pair, of = differences(CELLS, "to ce before RL")
    assert of["entropy_nats"].difference == pytest.approx(0.2)
    gains = np.array([2, -2, -4, 0, -2]) / SAMPLES
    assert of["pass_at_1"].difference == pytest.approx(gains.mean())
    assert pair.by_seed[0]["pass_at_1"] == pytest.approx(gains[:3].mean())
    assert pair.by_seed[1]["pass_at_1"] == pytest.approx(gains[3:].mean())
    low, high = of["pass_at_1"].interval
    assert low < gains.mean() < high
    # Ten of ten rollouts are a try at k = 10: a problem counts as solved when one was right.
    assert of["pass_at_10"].difference == pytest.approx(1 / 5)


def test_after_and_through_rl():
    _, of = differences(CELLS, "to ce after RL")
    assert of["pass_at_1"].difference == pytest.approx((5 + 0 + 0 + 3 - 1) / 50)
    for loss, gain in (("floor", 37 - 24), ("ce", 30 - 30)):
        _, of = differences(CELLS, "through RL", loss)
        assert of["pass_at_1"].difference == pytest.approx(gain / 50)


def test_along_depth_the_deepest_is_compared_with_the_shallowest():
    deeper = {"ce": {0: [0, 0, 10], 1: [0, 5]}, "floor": {0: [5, 5, 5], 1: [5, 5]}}
    cells = [
        {**cell(one["loss"], one["seed"], passed, passed), "depth": depth}
        for one in CELLS
        for depth in (2.0, 3.0)
        for passed in [deeper[one["loss"]][one["seed"]]]
    ]
    cells += CELLS
    result = compare(cells, {}, plan_of(cells))
    along = {(p.loss, p.contrast): p for p in result.pairs if p.contrast.startswith("to 1 epoch")}
    assert set(along) == {
        (loss, f"to 1 epoch {when} RL") for loss in ("ce", "floor") for when in ("before", "after")
    }
    assert {pair.depth for pair in along.values()} == {3.0}
    after = {d.metric: d for d in along["ce", "to 1 epoch after RL"].differences}
    assert after["pass_at_1"].difference == pytest.approx((15 - 30) / 50)


def test_the_answer_says_who_ends_ahead_and_what_it_costs():
    result = compare(CELLS, {}, plan_of(CELLS))
    pairs = {p.contrast: p for p in result.pairs if p.loss == "floor"}
    after = {d.metric: d for d in pairs["to ce after RL"].differences}["pass_at_10"]
    low, high = after.interval
    assert after.difference == pytest.approx(2 / 5)  # [0 1 1] [0 1] -> [1 1 1] [1 1]
    assert (
        f"From 1 epoch of SFT, last pass@10 after RL, less that of ce, problem by problem: floor "
        f"+0.400 (95 % {low:+.3f} to {high:+.3f}; pass@1 before RL -0.120)."
    ) in answer(result)
    alone = [cell for cell in CELLS if cell["loss"] == "ce"]
    assert "problem by problem" not in " ".join(answer(compare(alone, {}, plan_of(alone))))


def test_a_seed_that_one_side_lacks_is_left_out_and_so_are_cells_of_old():
    pair, of = differences(CELLS[:3], "to ce after RL")
    assert list(pair.by_seed) == [0]
    assert of["pass_at_1"].first == pytest.approx(20 / 30)
    bare = [{**c, "before": {**c["before"], "prompt_results": None}} for c in CELLS]
    contrasts = {p.contrast for p in compare(bare, {}, plan_of(bare)).pairs}
    assert contrasts == {"to ce after RL"}


def test_the_table_has_the_interval_and_how_many_seeds_agree():
    table = pairs_table(compare(CELLS, {}, plan_of(CELLS)))
    rows = {(row[0], row[2]): row for row in table.rows}
    assert list(rows) == [
        ("ce", "through RL"),
        ("floor", "to ce before RL"),
        ("floor", "to ce after RL"),
        ("floor", "through RL"),
    ]
    shown = rows["floor", "to ce after RL"][4]
    assert shown.text == "+0.140"
    assert shown.small == "-.080 to +.460; 2/2"


def test_the_page_shows_every_interval_beside_the_reference():
    page = echelon_html(compare(CELLS, {}, plan_of(CELLS)))
    assert "Each loss beside ce, problem by problem" in page
    assert "floor, 1 epoch, after RL: +0.140 (-0.080 to +0.460)" in page
    alone = CELLS[::2]
    assert "Each loss beside ce" not in echelon_html(compare(alone, {}, plan_of(alone)))
