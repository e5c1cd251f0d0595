"""Durations against closed forms on tabular softmax policies."""

import math

import numpy as np
import pytest
import torch
from tabular import (
    TabularTask,
    expected_reward,
    reward_gradient,
    sft_gradient,
    sft_loss,
    sft_optimum,
    tilted,
)

from entropyfloor.coupling.durations import (
    PromptCurves,
    estimate_pl,
    fit_model,
    measured_duration,
    modelled_duration,
    optimal_step,
    pl_duration,
)

P0 = 0.2  # the demonstrators' pass rate


def bandit():
    """One prompt, four answers of which one passes; RL starts from the demonstrators' policy."""
    one = torch.ones(1, dtype=torch.float64)
    demonstrations = torch.tensor([[P0, 0.5, 0.2, 0.1]], dtype=torch.float64)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    return TabularTask(one, demonstrations, rewards)


def curves(task, path, steps):
    """Curves of a path of logits, with prompts that agree: no noise."""
    rewards = [float(expected_reward(z, task)) for z in path]
    losses = [float(sft_loss(z, task)) for z in path]
    return PromptCurves(
        np.asarray(steps, dtype=float),
        np.repeat(np.array(rewards)[:, None], 3, 1),
        np.repeat(np.array(losses)[:, None], 2, 1),
        np.ones(2),
    )


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_best_step_equals_the_closed_form(weight):
    """Natural policy gradient from p_sft: J' = J(1-J) and L' = J - p0, so J* solves a quadratic.

    J(1-J) = w (J - p0); t* = logit J* - logit p0. The threshold (w = 1) is where J = sqrt(p0).
    """
    task = bandit()
    steps = np.linspace(0.0, 6.0, 1201)
    duration = measured_duration(
        curves(task, [tilted(sft_optimum(task), task, t) for t in steps], steps), weight
    )
    best = ((1 - weight) + math.sqrt((1 - weight) ** 2 + 4 * weight * P0)) / 2
    exact = math.log(best / (1 - best)) - math.log(P0 / (1 - P0))
    assert duration.step == pytest.approx(exact, abs=0.005)  # the grid's own distance
    assert duration.interval == (duration.step, duration.step) and duration.words == ""
    if weight == 1.0:
        assert best == pytest.approx(math.sqrt(P0))
        # Before it the reward rises faster, after it the loss does.
        for t, sign in ((exact - 0.5, 1), (exact + 0.5, -1)):
            z = tilted(sft_optimum(task), task, t)
            reward = float((reward_gradient(z, task) * task.rewards).sum())
            loss = float((sft_gradient(z, task) * task.rewards).sum())
            assert math.copysign(1, reward - loss) == sign


def test_beyond_the_run_is_said():
    task = bandit()
    steps = np.linspace(0.0, 1.0, 6)
    duration = measured_duration(
        curves(task, [tilted(sft_optimum(task), task, t) for t in steps], steps), 1.0
    )
    assert (
        duration.step == 1.0 and "may lie beyond" in duration.words and duration.share_beyond == 1.0
    )


def model_curves(rate, room, slope, curvature, steps, noise=0.0, size=40):
    s = -np.expm1(-rate * steps)
    rng = np.random.default_rng(0)
    reward, rise = 0.2 + room * (2 * s - s * s), slope * s + curvature * s * s
    return PromptCurves(
        steps,
        reward[:, None] + noise * rng.standard_normal((len(steps), size)),
        np.repeat(rise[:, None], size, 1) * 7 + noise * rng.standard_normal((len(steps), size)),
        np.full(size, 7.0),
    )


def test_the_model_finds_its_own_constants():
    steps = np.arange(0.0, 101.0, 10.0)
    curves = model_curves(0.03, 0.5, 0.05, 0.8, steps)
    fit = fit_model(steps, *curves.means())
    assert fit.rate == pytest.approx(0.03, rel=0.03)  # the grid of rates has steps of 2.7 %
    assert fit.reward_room == pytest.approx(0.5, rel=0.02)
    assert fit.loss_curvature == pytest.approx(0.8, rel=0.06)
    assert fit.saturates and fit.reward_residual < 2e-3 and fit.loss_residual < 2e-3
    weight = 1.5
    # The greatest value on a fine grid, not through the formula.
    fine = np.linspace(0, 300, 300001)
    s = -np.expm1(-0.03 * fine)
    exact = fine[np.argmax(0.5 * (2 * s - s * s) - weight * (0.05 * s + 0.8 * s * s))]
    assert float(optimal_step(0.03, 0.5, 0.05, 0.8, weight)) == pytest.approx(exact, abs=0.01)
    assert modelled_duration(curves, weight).step == pytest.approx(exact, rel=0.05)


def test_model_and_pl_formula_agree_from_an_optimum():
    mu_loss, mu_reward, room, rate = 0.6, 0.2, 0.4, 0.05
    by_pl = pl_duration(rate, mu_loss, mu_reward, 2.0)
    assert by_pl == pytest.approx(
        float(optimal_step(rate, room, 0.0, mu_loss * room / mu_reward, 2.0))
    )
    assert pl_duration(rate, mu_loss, mu_reward, 0.0) == math.inf
    with pytest.raises(ValueError, match="mu_loss must be positive"):
        pl_duration(rate, 0.0, mu_reward, 1.0)


def test_ends():
    assert float(optimal_step(0.1, 0.5, 2.0, 0.0, 1.0)) == 0.0  # the loss rises at once
    assert float(optimal_step(0.1, 0.5, 0.0, 0.0, 1.0)) == math.inf  # the loss never rises
    assert float(optimal_step(0.1, -0.5, 1.0, 0.0, 1.0)) == 0.0  # the reward falls
    few = model_curves(0.03, 0.5, 0.0, 0.8, np.arange(3.0))
    assert modelled_duration(few, 1.0).step is None
    straight = model_curves(1e-5, 500.0, 0.0, 0.0, np.arange(0.0, 50.0, 10.0))
    assert "does not level off" in modelled_duration(straight, 1.0).words


def test_intervals_cover():
    """95 % intervals of the modelled step hold the true one in most of 60 noisy runs."""
    steps = np.arange(0.0, 101.0, 10.0)
    exact = float(optimal_step(0.03, 0.5, 0.05, 0.8, 1.0))
    inside = 0
    rng = np.random.default_rng(1)
    for _ in range(60):
        clean = model_curves(0.03, 0.5, 0.05, 0.8, steps)
        noisy = PromptCurves(
            steps,
            clean.rewards + 0.3 * rng.standard_normal(clean.rewards.shape),
            clean.losses + 1.0 * rng.standard_normal(clean.losses.shape),
            clean.tokens,
        )
        duration = modelled_duration(noisy, 1.0, num_resamples=200)
        assert duration.interval is not None and duration.interval.low < duration.interval.high
        inside += duration.interval.low <= exact <= duration.interval.high
    assert 50 <= inside <= 60


def test_measured_interval_widens_with_noise():
    steps = np.arange(0.0, 101.0, 2.0)
    quiet = measured_duration(model_curves(0.03, 0.5, 0.05, 0.8, steps, noise=0.02), 1.0)
    loud = measured_duration(model_curves(0.03, 0.5, 0.05, 0.8, steps, noise=3.0), 1.0)
    assert loud.interval.high - loud.interval.low > quiet.interval.high - quiet.interval.low


def test_pl_of_a_quadratic_is_its_smallest_curvature():
    """L = sum_i h_i x_i^2 / 2 satisfies PL with mu = min h; descent finds it in the end."""
    h, x = np.array([0.5, 4.0]), np.array([1.0, 1.0])
    losses, norms = [], []
    for _ in range(200):
        losses.append(float((h * x * x).sum() / 2))
        norms.append(float(((h * x) ** 2).sum()))
        x = x - 0.1 * h * x
    estimate = estimate_pl([*losses, 0.0], [*norms, 0.0])
    assert estimate.mu == pytest.approx(0.5, rel=1e-6)
    # Without the optimum among the points the estimate is too large, never too small.
    early = estimate_pl(losses[:10], norms[:10])
    assert early.mu > 0.5 and early.points == 9
    assert estimate_pl([1.0], [2.0]).mu is None
    assert estimate_pl([1.0, 0.0], [None, 1.0]).mu is None
    with pytest.raises(ValueError, match="one squared gradient norm per loss"):
        estimate_pl([1.0], [])


def test_pl_along_a_tabular_run():
    task = bandit()
    z = tilted(sft_optimum(task), task, 4.0)
    losses, norms = [], []
    for _ in range(400):
        gradient = sft_gradient(z, task)
        losses.append(float(sft_loss(z, task)))
        norms.append(float((gradient**2).sum()))
        z = z - 0.5 * gradient
    estimate = estimate_pl(losses, norms)
    best = min(losses)
    exact = min(n / (2 * (v - best)) for n, v in zip(norms, losses, strict=True) if v > best)
    assert estimate.mu == pytest.approx(exact) and estimate.mu > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": np.array([0.0, 0.0])}, "rising order"),
        ({"steps": np.array([0.0])}, "two or more steps"),
        ({"tokens": np.ones(3)}, "tokens"),
    ],
)
def test_bad_curves(change, message):
    good = {
        "steps": np.array([0.0, 1.0]),
        "rewards": np.zeros((2, 3)),
        "losses": np.zeros((2, 2)),
        "tokens": np.ones(2),
    }
    with pytest.raises(ValueError, match=message):
        PromptCurves(**{**good, **change})
