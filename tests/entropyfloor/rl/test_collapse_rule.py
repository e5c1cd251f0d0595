"""Exact decisions of stage 2 on recorded curves: whole, with holes, restarted, rescaled."""

import math

import pytest

from entropyfloor.rl.collapse_rule import (
    COLLAPSED,
    HEALTHY,
    UNKNOWN,
    WAITING,
    CollapseRule,
    never_scored,
    saved_share,
    scaled,
)


def curve(drop, start=0.42, steps=400, early=10, late=150):
    """Entropy per step: exponential decay that has fallen by ``drop`` from early to late."""
    rate = math.log(1.0 - drop) / (late - early)
    return [(s, start * math.exp(rate * (s - early))) for s in range(1, steps + 1)]


RULE = CollapseRule.for_run(400)


def test_the_papers_steps():
    assert (RULE.early_step, RULE.late_step, RULE.tau_2, RULE.window) == (10, 150, 0.5, 1)
    assert saved_share(150, 400) == 0.625


@pytest.mark.parametrize(
    ("drop", "verdict"),
    [(0.64, COLLAPSED), (0.24, HEALTHY), (0.499, HEALTHY), (0.501, COLLAPSED), (-0.3, HEALTHY)],
)
def test_recorded_drops(drop, verdict):
    readings = curve(drop)
    assert RULE.judge(readings[:149], 149).verdict == WAITING
    decision = RULE.judge(readings[:150], 150)
    assert decision.verdict == verdict
    assert decision.drop == pytest.approx(drop, abs=1e-12)
    assert decision.early == (10, pytest.approx(0.42))
    assert decision.late == (150, pytest.approx(0.42 * (1 - drop)))
    # What comes later changes nothing.
    assert RULE.judge([*readings[:150], (151, 0.0)], 400) == decision


def test_exactly_the_threshold_is_not_above_it():
    assert RULE.judge([(10, 0.5), (150, 0.25)], 150).verdict == HEALTHY
    assert RULE.judge([(10, 0.5), (150, math.nextafter(0.25, 0))], 150).verdict == COLLAPSED


def test_the_sentence():
    reason = RULE.judge([(10, 0.5), (150, 0.18)], 150).reason
    assert reason == (
        "entropy fell 64.0% from 0.5 nats at step 10 to 0.18 at step 150, more than tau_2 = 50%"
    )
    assert "rose 20.0%" in RULE.judge([(10, 0.5), (150, 0.6)], 150).reason


@pytest.mark.parametrize("hole", [None, math.nan, math.inf, "absent"])
def test_holes_are_filled_by_the_next_reading(hole):
    readings = dict(curve(0.64))
    for step in (10, 11, 150, 151, 152):
        readings[step] = hole
    kept = [(s, v) for s, v in readings.items() if v != "absent"]
    assert RULE.judge(kept, 150).verdict == WAITING
    decision = RULE.judge(kept, 153)
    assert decision.verdict == COLLAPSED
    assert decision.early[0] == 12
    assert decision.late[0] == 153
    assert decision.drop == pytest.approx(1 - readings[153] / readings[12])


def test_a_hole_is_not_filled_from_before():
    """An entropy from before the early step would overstate the drop."""
    decision = RULE.judge([(1, 9.0), (9, 9.0), (30, 0.5), (150, 0.4)], 150)
    assert decision.early == (30, 0.5)
    assert decision.verdict == HEALTHY


@pytest.mark.parametrize(
    ("readings", "missing"), [([(150, 0.1)], 10), ([(10, 0.4)], 150), ([], 10), ([(46, 0.4)], 10)]
)
def test_too_many_holes_are_unknown_never_a_guess(readings, missing):
    assert RULE.tolerance == 35
    later = [*readings, (300, 0.01)]
    decision = RULE.judge(later, 300)
    assert decision.verdict == UNKNOWN
    assert f"no entropy was read at step {missing}" in decision.reason
    assert RULE.judge([(10, 0.4)], 184).verdict == WAITING  # one may still come
    assert RULE.judge([(10, 0.4)], 185).verdict == UNKNOWN


def test_a_run_that_begins_at_zero():
    decision = RULE.judge([(10, 0.0), (150, 0.0)], 150)
    assert decision.verdict == UNKNOWN
    assert "began collapsed" in decision.reason


def test_a_run_of_which_nothing_was_scored_is_not_healthy():
    healthy = RULE.judge([(10, 0.4), (150, 0.39)], 150)
    decision = never_scored(healthy, 12)
    assert (healthy.verdict, decision.verdict, decision.drop) == (HEALTHY, UNKNOWN, healthy.drop)
    assert decision.reason.startswith("cannot tell: no rollout of 12 groups was scored")
    assert never_scored(healthy, 0) is healthy
    collapsed = RULE.judge([(10, 0.4), (150, 0.1)], 150)
    assert never_scored(collapsed, 12) is collapsed


def test_a_restart_overwrites_what_was_run_twice():
    """Killed at 150, resumed at 100: the second pass counts, in whatever order it is listed."""
    first, second = curve(0.64)[:150], curve(0.24)[100:150]
    assert RULE.judge(first, 150).verdict == COLLAPSED
    assert RULE.judge([*first, *second], 150).verdict == HEALTHY
    assert RULE.judge([*first, (150, math.nan), (151, 0.4)], 151).late == (151, 0.4)


def test_logged_every_tenth_and_every_twenty_fifth_step():
    for every, early in ((10, 10), (25, 25)):
        kept = [(s, v) for s, v in curve(0.64) if s % every == 0]
        decision = RULE.judge(kept, 150)
        assert (decision.verdict, decision.early[0], decision.late[0]) == (COLLAPSED, early, 150)


def test_window_averages_finite_readings_up_to_the_step():
    rule = CollapseRule.for_run(400, window=3)
    readings = [(8, 1.0), (9, None), (10, 2.0), (148, 0.3), (149, 0.6), (150, 0.9), (151, 9.0)]
    decision = rule.judge(readings, 151)
    assert decision.early == (10, 1.5)
    assert decision.late == (150, pytest.approx(0.6))
    assert decision.drop == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("steps", "early", "late"),
    [(400, 10, 150), (800, 20, 300), (150, 4, 56), (100, 3, 38), (40, 1, 15), (3, 1, 2), (1, 1, 2)],
)
def test_steps_are_scaled_to_the_run(steps, early, late):
    rule = CollapseRule.for_run(steps)
    assert (rule.early_step, rule.late_step) == (early, late)
    assert scaled(10, steps) == early


def test_drop_on_the_way():
    readings = curve(0.64)
    assert RULE.drop_at(readings, 9) is None
    assert RULE.drop_at(readings, 10) is None
    assert RULE.drop_at(readings, 80) == pytest.approx(1 - math.sqrt(0.36))
    assert RULE.drop_at(readings[:79], 80) is None  # not read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau_2": 0.0}, "between 0 and 1"),
        ({"tau_2": 1.0}, "between 0 and 1"),
        ({"early_step": 150}, "early_step < late_step"),
        ({"early_step": 0}, "early_step < late_step"),
        ({"window": 0}, "1 or more"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        CollapseRule.for_run(400, **options)
    with pytest.raises(ValueError, match="max_steps = 0"):
        CollapseRule.for_run(0)
