import pytest

from entropyfloor.echelon.rungs import make_plan, read_rungs
from made_up_echelon import SETTINGS, made_up, measures


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
    plan = make_plan(cells, {**SETTINGS, **settings})
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


def test_a_rung_without_its_last_step_has_no_outcome():
    cells = [cell(), cell(depth=2.0, after=(0.5, 0.6))]
    (whole, part), (missing,) = rungs_of(cells)
    assert whole.outcomes and not part.outcomes
    assert (missing.depth, missing.why) == (2.0, "GRPO not evaluated at step 150")


def test_what_is_missing_is_named():
    cells = [
        cell(),
        {"loss": "ce", "seed": 1, "depth": 1.0, "failed": "out of memory"},
        cell(depth=2.0, after=(0.1,), failed="killed"),
    ]
    plan = {"losses": ["ce"], "depths": [1, 2], "seeds": [0, 1], "grpo_steps": [50, 100]}
    rungs, missing = rungs_of([dict(c) for c in cells], **plan)
    assert [(r.depth, r.seed) for r in rungs] == [(1.0, 0), (2.0, 0)]
    assert {(m.depth, m.seed): m.why for m in missing} == {
        (1.0, 1): "failed: out of memory",
        (2.0, 0): "failed: killed; GRPO not evaluated at step 100",
        (2.0, 1): "not there yet",
    }


def test_without_a_plan_nothing_but_the_cells_is_expected():
    rungs, missing = rungs_of([cell(), cell(loss="sed", depth=3.0, seed=4)])
    assert len(rungs) == 2 and missing == ()


def test_without_rl_a_screened_cell_is_complete():
    (rung,), missing = rungs_of([cell(after=())])
    assert rung.outcomes == {} and missing == ()


def test_the_order_is_the_plans():
    cells, _ = made_up(("ce", "sed"), (1.0, 2.0), (0, 1))
    settings = {**SETTINGS, "losses": ["sed", "ce"], "depths": [1, 2], "seeds": [0, 1]}
    forward = read_rungs(cells, make_plan(cells, settings))
    backward = read_rungs(cells[::-1], make_plan(cells[::-1], settings))
    assert forward == backward
    assert [rung.loss for rung in forward[0]] == ["sed"] * 4 + ["ce"] * 4


def test_the_reference():
    assert make_plan([cell(loss="sed"), cell()], SETTINGS).reference == "ce"
    assert make_plan([cell(loss="sed"), cell(loss="gem")], SETTINGS).reference == "sed"
    assert make_plan([cell(loss="a")], {**SETTINGS, "reference": "a"}).reference == "a"
    with pytest.raises(ValueError, match="reference is 'sed', which is none of ce"):
        make_plan([cell()], {**SETTINGS, "reference": "sed"})


def test_the_floor_is_tau_h_unless_given():
    assert make_plan([cell()], {**SETTINGS, "tau_h": 0.3}).floor == 0.3
    assert make_plan([cell()], {**SETTINGS, "floor": 0.25}).floor == 0.25


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        ([cell(), cell()], {}, "ce, 1 epoch, seed 0 is there twice"),
        ([cell(seed=3)], {"losses": ["ce"], "depths": [1], "seeds": [0]}, "not in the plan"),
        ([cell()], {"outcome_k": 64}, r"no pass_at_64 after RL \(pass@k was measured for k = 1, 8"),
        ([cell()], {"outcome_k": None}, r"settings\['outcome_k'\] must be a whole number"),
        ([cell()], {"group_size": 0}, r"settings\['group_size'\] must be a whole number"),
        ([cell()], {"tau_h": -1.0}, "tau_h is an entropy"),
        (
            [cell(before=measures(float("nan"), 0.2, 0.5))],
            {},
            "before RL: entropy_nats is nan",
        ),
    ],
)
def test_what_does_not_fit_is_refused(cells, settings, words):
    with pytest.raises(ValueError, match=words):
        rungs_of(cells, **settings)
