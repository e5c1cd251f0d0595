import itertools
import json
import random
import subprocess
import sys

import pytest

from entropyfloor.echelon.compare import compare
from entropyfloor.echelon.page import write_report
from entropyfloor.echelon.table import echelon_markdown
from made_up_echelon import LOSSES, made_up, plan_of


def test_the_order_of_cells_does_not_matter():
    cells, base = made_up(("ce", "sed"))
    shuffled = random.Random(0).sample(cells, len(cells))
    plan = plan_of(cells)
    first, second = compare(cells, base, plan), compare(shuffled, base, plan)
    assert first.to_dict() == second.to_dict()


def test_what_went_through_json_gives_the_same():
    cells, base = made_up(("ce", "sed"), (1.0, 2.0, 3.0))
    again = json.loads(json.dumps({"cells": cells, "base": base}))
    plan = plan_of(cells)
    once, twice = compare(cells, base, plan), compare(again["cells"], again["base"], plan)
    assert once.to_dict() == twice.to_dict()


def test_the_course_is_the_mean_of_the_seeds():
    cells, base = made_up(("ce",))
    comparison = compare(cells, base, plan_of(cells))
    here = [c for c in cells if c["depth"] == 20.0]
    row = comparison.row("ce", 20.0)
    rates = [c["before"]["pass_at_1"] for c in here]
    assert row.before["pass_at_1"].mean == pytest.approx(sum(rates) / 3)
    assert (row.before["pass_at_1"].low, row.before["pass_at_1"].high) == (min(rates), max(rates))
    peaks = [max(a["pass_at_k"]["10"] for a in c["after"].values()) for c in here]
    assert list(row.outcomes["peak_pass_at_10"].by_seed.values()) == pytest.approx(peaks)
    last = [c["after"]["150"]["entropy_nats"] for c in here]
    assert row.after["entropy_nats"].mean == pytest.approx(sum(last) / 3)
    assert comparison.row("base", 0.0).before["entropy_nats"].mean == pytest.approx(2.7)


def test_json_is_strict_and_flat_rows_are_all_there(tmp_path):
    cells, base = made_up(("ce", "sed"), (1.0, 2.0, 4.0))
    write_report(compare(cells, base, plan_of(cells)), tmp_path / "new")
    path = tmp_path / "new" / "echelon.json"
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (document["schema"], document["schema_version"]) == ("entropyfloor.echelon", 1)
    assert len(document["rows"]) == 3 + 18 * 4
    assert len({tuple(row) for row in document["rows"]}) == 1  # the columns of a CSV file
    assert not any(isinstance(v, dict | list) for row in document["rows"] for v in row.values())
    assert document["seconds"] == pytest.approx(63.0 * 18)


@pytest.mark.parametrize("kept", [0, 1, 2, 7, 23, 40])
def test_whatever_is_missing_breaks_nothing(kept):
    """Cells cut at random: not there, not through RL, without a measure."""
    cells, base = made_up(LOSSES[:3])
    plan = plan_of(cells)
    rng = random.Random(kept)
    rng.shuffle(cells)
    for index, cell in enumerate(cells[:kept]):
        if index % 3 == 0:
            del cell["after"]["150"]
        elif index % 3 == 1:
            del cell["before"]["held_out_loss"]
    comparison = compare(cells[:kept], base if kept % 2 else {}, plan)
    complete = sum(bool(rung.outcomes) for rung in comparison.rungs)
    assert len(comparison.missing) == 45 - complete
    text = echelon_markdown(comparison)
    assert f"{45 - complete} of 45 cells without outcome after RL" in text
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_a_bare_process_compares_without_torch():
    program = (
        "import sys, entropyfloor.echelon.compare as c;"
        "import entropyfloor.echelon.page;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


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
