import pytest

from entropyfloor.echelon.rungs import read_rungs
from made_up_echelon import made_up, measures, plan_of


def cell(loss="ce", seed=0, depth=1.0, after=(0.5, 0.6, 0.4), **more):
    steps = {str(50 * (i + 1)): measures(0.3, 0.1, reach) for i, reach in enumerate(after)}
    return {
        "loss": loss,
        "seed": seed,
        "depth": depth,
        "before": measures(0.5, 0.2, 0.5),
        "after": steps,
        **more,
    }


def rungs_of(cells, **settings):
    plan = plan_of(cells, **settings)
    return read_rungs(cells, plan)


def test_peak_and_last():
    (rung,), missing = rungs_of([cell(after=(0.5, 0.6, 0.4))])
    peak, last = rung.outcomes["peak_pass_at_10"], rung.outcomes["last_pass_at_10"]
    assert (peak.value, peak.step) == (pytest.approx(0.1 + 0.6 * 0.9), 100)
    assert (last.value, last.step) == (pytest.approx(0.1 + 0.4 * 0.9), 150)
    assert peak.interval.low == pytest.approx(peak.value - 0.03)
    assert rung.outcomes["peak_pass_at_1"].step == 50  # the first of equals
    assert missing == ()


def test_the_outcome_may_be_pass_at_1():
    (rung,), _ = rungs_of([cell()], outcome_k=1)
    assert set(rung.outcomes) == {"peak_pass_at_1", "last_pass_at_1"}


def test_pass_at_1_is_known_where_it_is_not_among_the_ks():
    without = cell(loss="sed")
    for step in without["after"].values():
        del step["pass_at_k"]["1"]
    both, _ = rungs_of([cell(), without])
    one, other = (rung.outcomes for rung in both)
    assert one == other and one["last_pass_at_1"].value == 0.1


def test_a_rung_without_its_last_step_has_no_outcome():
    cells = [cell(), cell(depth=2.0, after=(0.5, 0.6))]
    (whole, part), (missing,) = rungs_of(cells)
    assert whole.outcomes and not part.outcomes
    assert (missing.depth, missing.why) == (2.0, "GRPO not evaluated at step 150")


def test_what_is_missing_is_named():
    cells = [cell(), cell(depth=2.0, after=(0.1,))]
    rungs, missing = rungs_of(cells, seeds=(0, 1), grpo_steps=(50, 100))
    assert [(r.depth, r.seed) for r in rungs] == [(1.0, 0), (2.0, 0)]
    assert {(m.depth, m.seed): m.why for m in missing} == {
        (1.0, 1): "not there yet",
        (2.0, 0): "GRPO not evaluated at step 100",
        (2.0, 1): "not there yet",
    }


def test_without_rl_a_screened_cell_is_complete():
    (rung,), missing = rungs_of([cell(after=())])
    assert rung.outcomes == {} and missing == ()


def test_the_order_is_the_plans():
    cells, _ = made_up(("ce", "sed"), (1.0, 2.0), (0, 1))
    plan = plan_of(cells, losses=("sed", "ce"))
    forward, backward = read_rungs(cells, plan), read_rungs(cells[::-1], plan)
    assert forward == backward
    assert [rung.loss for rung in forward[0]] == ["sed"] * 4 + ["ce"] * 4


def test_the_reference():
    assert plan_of([cell(loss="sed"), cell()]).reference == "ce"
    assert plan_of([cell(loss="sed"), cell(loss="gem")]).reference == "sed"
