"""The controller on plants: entropy that falls by itself and rises with the weight."""

import itertools
import json
import math

import pytest

from entropyfloor.sft.floor.controller import SATURATED_STEPS, FloorController


def run(controller, *, fall, push, momentum=0.0, late=0, start=2.0, steps=400, ceiling=3.0):
    """Log-entropy falls by ``fall`` a step and rises by ``push * weight``; entropies and weights.

    ``fall / push`` is the weight that holds the entropy still; with ``momentum`` the change is
    smoothed, as an optimiser does, and the weight acts ``late`` steps later.
    """
    entropies, weights, log_entropy, velocity = [], [], math.log(start), 0.0
    for step in range(steps):
        weights.append(controller.update(math.exp(log_entropy)))
        acting = weights[max(0, step - late)]
        velocity = momentum * velocity + (1 - momentum) * (push * acting - fall)
        log_entropy = min(log_entropy + velocity, math.log(ceiling))
        entropies.append(math.exp(log_entropy))
    return entropies, weights


# The weight that holds the entropy from 0.02 to 1; entropy halving in 70, 14 or 3 steps; an
# optimiser that answers at once or after ten steps, and a weight that acts three steps late.
PLANTS = [
    {"fall": fall, "push": fall / needed, "momentum": momentum, "late": late}
    for fall in (0.01, 0.05, 0.25)
    for needed in (0.02, 0.2, 1.0)
    for momentum, late in ((0.0, 0), (0.9, 0), (0.9, 3))
]


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_it_holds_the_target_without_swinging(plant):
    controller = FloorController(floor=0.18)
    entropies, weights = run(controller, **plant, steps=1500)
    relative = [entropy / controller.target for entropy in entropies]
    assert all(abs(r - 1) < 0.02 for r in relative[1300:])
    assert max(weights[1300:]) < 1.1 * min(weights[1300:])
    first = next(i for i, r in enumerate(relative) if r < 1.1)
    assert max(relative[first:]) < 1.6
    assert all(0.7 < r < 1.4 for r in relative[first + 320 :])


def test_no_entropy_is_spent_while_there_is_plenty():
    controller = FloorController(floor=0.18)
    weights = [controller.update(2.0) for _ in range(50)]
    assert weights[-1] == 0.0
    assert all(b <= a for a, b in itertools.pairwise(weights))


def test_the_sum_does_not_wind_up():
    """A long time at either limit, and the weight still answers within a few steps."""
    low = FloorController(floor=0.18)
    for _ in range(5000):
        low.update(3.0)
    after = [low.update(0.09) for _ in range(20)]
    assert max(after) > 0.05
    high = FloorController(floor=0.18)
    for _ in range(5000):
        high.update(0.01)
    assert high.weight == pytest.approx(high.max_weight)
    after = [high.update(1.0) for _ in range(20)]
    assert min(after) < 0.5 * high.max_weight


def test_a_floor_that_cannot_be_held_saturates():
    controller = FloorController(floor=5.0)
    entropies, weights = run(controller, fall=0.05, push=0.001)
    assert controller.saturated
    assert weights[-1] == pytest.approx(controller.max_weight)
    assert all(math.isfinite(h) for h in entropies)
    held = FloorController(floor=0.18)
    run(held, fall=0.05, push=0.5)
    assert not held.saturated
    assert SATURATED_STEPS > 1


def test_batches_without_scored_tokens_change_nothing():
    controller = FloorController(floor=0.18)
    for entropy in (0.5, 0.3, 0.2):
        controller.update(entropy)
    before = controller.state_dict()
    controller.update(math.nan)
    assert controller.state_dict() == before


def test_the_probe_moves_the_target_so_that_rollouts_end_above_the_floor():
    """Rollouts have 0.6 of the teacher-forced entropy: the loop holds the rollouts at the floor."""
    controller = FloorController(floor=0.18)
    log_entropy = math.log(2.0)
    for step in range(800):
        weight = controller.update(math.exp(log_entropy))
        log_entropy += -0.02 + 0.1 * weight
        if step % 25 == 24:
            controller.correct(0.6 * math.exp(log_entropy))
    assert controller.ratio == pytest.approx(0.6, rel=0.02)
    assert 0.6 * math.exp(log_entropy) == pytest.approx(0.18 * 1.25, rel=0.03)


def test_one_probe_cannot_move_the_target_without_bound():
    controller = FloorController(floor=0.18)
    controller.update(0.2)
    for _ in range(50):
        controller.correct(1e-9)
    assert controller.target == pytest.approx(0.18 * 1.25 / 0.2)
    controller.correct(0.0)
    controller.correct(math.nan)
    assert controller.target == pytest.approx(0.18 * 1.25 / 0.2)


def test_state_goes_through_json_exactly():
    first = FloorController(floor=0.18)
    values = [2.0 * 0.93**i + 0.01 * (i % 3) for i in range(60)]
    for value in values[:30]:
        first.update(value)
    first.correct(0.31)
    second = FloorController(floor=0.18)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [first.update(v) for v in values[30:]] == [second.update(v) for v in values[30:]]
    with pytest.raises(ValueError, match="lacks weight"):
        second.load_state_dict({k: v for k, v in first.state_dict().items() if k != "weight"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": 0.0}, "floor is 0.0"),
        ({"floor": math.nan}, "floor is nan"),
        ({"floor": 0.18, "margin": -0.1}, "margin is -0.1"),
        ({"floor": 0.18, "smoothing": 1.0}, "smoothing is 1.0"),
        ({"floor": 0.18, "max_weight": 0.001}, "must be above 0.005"),
        ({"floor": 0.18, "gain": -1.0}, "gain is -1.0"),
        ({"floor": 0.18, "lead": -1.0}, "lead is -1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FloorController(**settings)


def test_an_onset_is_seen_before_a_steep_fall_passes_it():
    """1.3 times the target of 0.225 is 0.2925: a fall by a third a step is seen from above 0.4."""
    slow, steep = FloorController(floor=0.18), FloorController(floor=0.18)
    assert not slow.arriving
    for entropy in (0.44, 0.43, 0.42, 0.41, 0.40):
        slow.update(entropy)
        assert not slow.arriving
    for entropy in (1.35, 0.9, 0.6):
        steep.update(entropy)
        assert not steep.arriving
    steep.update(0.32)
    assert steep.arriving and steep.entropy > 0.4
    for entropy in (0.36, 0.33, 0.31, 0.29):
        slow.update(entropy)
    assert slow.arriving


def test_rest_forgets_the_sum():
    """After a long time below the target the weight is as if that time had not been."""
    weights = []
    for rests in (False, True):
        controller = FloorController(floor=0.18)
        for _ in range(50):
            controller.update(0.15)
        if rests:
            controller.rest()
            assert controller.weight == 0.0
        weights.append(controller.update(0.15))
    assert weights[1] < 0.6 * weights[0]
    error = math.log(0.225 / 0.15)
    assert weights[1] == pytest.approx(0.05 * math.exp(1.25 * (error + error / 30.0)))


def test_the_weight_at_the_target_is_the_initial_one():
    controller = FloorController(floor=0.18, initial_weight=1.0)
    assert controller.update(controller.target) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="initial_weight"):
        FloorController(floor=0.18, initial_weight=0.0)
