import pytest

from entropyfloor.echelon.rungs import read_rungs
from entropyfloor.echelon.selection import rule_results
from made_up_echelon import made_up, measures, plan_of


def cell(depth, entropy, rate, reach, outcome, *, seed=0, loss="ce", **more):
    return {
        "loss": loss,
        "seed": seed,
        "depth": depth,
        "before": {**measures(entropy, rate, reach), **more},
        "after": {"50": measures(0.1, 0.1, (outcome - 0.1) / 0.9)},
    }


def rules_of(cells, scope="ce", **settings):
    plan = plan_of(cells, **settings)
    rungs, _ = read_rungs(cells, plan)
    return {r.rule: r for r in rule_results(rungs, plan) if r.scope == scope}


CELLS = [
    cell(1.0, 0.90, 0.20, 0.90, 0.80, held_out_loss=0.9),
    cell(2.0, 0.60, 0.30, 0.70, 0.90, held_out_loss=0.4),
    cell(3.0, 0.20, 0.35, 0.50, 0.60, held_out_loss=0.6),
    cell(4.0, 0.10, 0.40, 0.30, 0.50, held_out_loss=0.7),
]


@pytest.mark.parametrize(
    ("rule", "depth", "regret"),
    [
        ("highest pass@1", 4.0, 0.4),
        ("highest pass@10", 1.0, 0.1),
        ("lowest degenerate fraction", 1.0, 0.1),
        ("highest entropy", 1.0, 0.1),
        ("deepest above 0.18 nats", 3.0, 0.3),
        ("lowest held-out loss", 2.0, 0.0),
        ("our recommendation", 1.0, 0.1),
    ],
)
def test_what_a_rule_picks_and_what_it_costs(rule, depth, regret):
    result = rules_of(CELLS)[rule]
    assert (result.by_seed[0].loss, result.by_seed[0].depth) == ("ce", depth)
    assert result.regret("peak_pass_at_10") == pytest.approx(regret)
    assert result.mean("peak_pass_at_10") == pytest.approx(0.9 - regret)


def test_one_at_random_is_the_mean():
    rule = rules_of(CELLS)["one at random"]
    assert rule.mean("peak_pass_at_10") == pytest.approx(0.7)
    assert rule.regret("peak_pass_at_10") == pytest.approx(0.2)


def test_tau_h_moves_the_deepest():
    assert rules_of(CELLS, tau_h=0.5)["deepest above 0.5 nats"].by_seed[0].depth == 2.0
    none = rules_of(CELLS, tau_h=2.0)["deepest above 2 nats"]
    assert none.by_seed[0].outcomes == {} and none.chosen() == 0
    assert none.regret("peak_pass_at_10") is None and none.mean("peak_pass_at_10") is None


def test_the_recommendation_is_screenings_and_may_be_none():
    flagged = [{**c, "before": {**c["before"], "verdict": "collapsed"}} for c in CELLS]
    (pick,) = rules_of(flagged)["our recommendation"].by_seed.values()
    assert pick.loss is None and "every checkpoint is flagged" in pick.reason
    # Of those that are not flagged it takes the one with the fewest degenerate groups.
    mixed = flagged[:2] + CELLS[2:]
    mixed[3]["before"]["verdict"] = mixed[2]["before"]["verdict"] = "ready"
    assert rules_of(mixed)["our recommendation"].by_seed[0].depth == 3.0


def test_seeds_without_a_pick_are_not_counted_as_regret():
    other = [{**c, "seed": 1, "before": {**c["before"], "verdict": "at risk"}} for c in CELLS]
    rule = rules_of(CELLS + other)["our recommendation"]
    assert rule.chosen() == 1 and len(rule.by_seed) == 2
    assert rule.regret("peak_pass_at_10") == pytest.approx(0.1)


def test_over_all_losses_equal_depth_goes_by_pass_at_1():
    more = [cell(4.0, 0.5, 0.45, 0.3, 0.7, loss="sed"), cell(4.0, 0.5, 0.5, 0.3, 0.65, loss="gem")]
    rules = rules_of(CELLS + more, scope=None)
    deepest = rules["deepest above 0.18 nats"].by_seed[0]
    assert (deepest.loss, deepest.depth) == ("gem", 4.0)
    assert rules["highest pass@1"].by_seed[0].loss == "gem"
    # Within ce nothing of the others is there to choose, or to regret.
    assert rules_of(CELLS + more)["highest pass@1"].by_seed[0].depth == 4.0


def test_the_best_is_of_rungs_with_an_outcome():
    cut = {**CELLS[1], "after": {}}
    rules = rules_of([CELLS[0], cut, *CELLS[2:]], grpo_steps=(50,))
    assert rules["highest pass@1"].by_seed[0].best["peak_pass_at_10"] == pytest.approx(0.8)


def test_a_rule_needs_its_measure():
    cells, _ = made_up(("ce",), (1.0, 2.0), (0,))
    del cells[0]["before"]["held_out_loss"]
    assert "lowest held-out loss" not in rules_of(cells)


def test_without_outcomes_there_are_no_rules():
    cells, _ = made_up(("ce",), (1.0, 2.0), (0,), steps=())
    assert rules_of(cells) == {}
