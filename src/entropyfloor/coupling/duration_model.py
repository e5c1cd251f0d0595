"""How long to train, by a model: what the Polyak-Lojasiewicz condition would make of the curves.

Gradient ascent with step size eta on a reward that satisfies PL as an equality,
``|grad J|^2 = 2 mu_J (J* - J)``, closes the gap exponentially and moves the parameters by a path
whose length saturates:

    u(t) = exp(-rho t),  s = 1 - u,  rho = mu_J eta
    J(t) = J(0) + D (1 - u^2) = J(0) + D (2 s - s^2)         D = J* - J(0)
    |theta(t) - theta(0)| <= path(t) = sqrt(2 D / mu_J) s    equality on a straight path

The SFT loss along the path to second order, with no linear term where the start is an SFT optimum:

    L(t) - L(0) = b s + c s^2

PL of the SFT loss gives quadratic growth ``L - L* >= mu_L / 2 * distance^2``, so that on a straight
path from an optimum ``c >= mu_L D / mu_J``. Maximising ``J - w L`` over s is a parabola:

    s* = (2 D - w b) / (2 (D + w c))        t* = -log(1 - s*) / rho
    b = 0, c = mu_L D / mu_J:   t* = log(1 + 1/(w kappa)) / rho,   kappa = mu_L / mu_J

The paper (arXiv:2601.07389) derives a duration under PL; this is our own reading of the same
condition, kept to two curves so that it can be fitted and contradicted. Nothing here is a theorem
about transformers, where PL is not known to hold: compare it with the measured duration.
"""

from dataclasses import dataclass

import numpy as np

from entropyfloor.coupling.durations import (
    Duration,
    PromptCurves,
    check_weight,
    percentile_interval,
)
from entropyfloor.stats.intervals import RESAMPLES

FEWEST_STEPS = 4  # J has three unknowns; with three points every curve fits
_GRID = 240
_SLOWEST, _FASTEST = 0.05, 30.0  # rho times the run's length: a straight line, and one that jumps


@dataclass(frozen=True)
class ModelFit:
    """The model's constants for one run.

    Attributes:
        rate: ``rho``, per step.
        reward_room: ``D``, reward that the model says can be won in all.
        loss_slope: ``b``, nats per token.
        loss_curvature: ``c``, nats per token.
        reward_residual: root mean square of what the fit leaves of the rewards.
        loss_residual: the same of the SFT loss rise, nats per token.
        saturates: False where the rate is at an end of what was searched, so that the reward has
            not begun to level off (or jumped at once) and ``D`` and ``rho`` mean nothing apart.

    """

    rate: float
    reward_room: float
    loss_slope: float
    loss_curvature: float
    reward_residual: float
    loss_residual: float
    saturates: bool


def optimal_step(
    rate: np.ndarray | float,
    room: np.ndarray | float,
    slope: np.ndarray | float,
    curvature: np.ndarray | float,
    weight: float,
) -> np.ndarray:
    """``t*`` of the formula above, steps since the start; 0 and infinity where an end is best."""
    rate, room, slope, curvature = (
        np.asarray(v, dtype=float) for v in (rate, room, slope, curvature)
    )
    bend = room + weight * curvature
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip((2.0 * room - weight * slope) / (2.0 * bend), 0.0, 1.0)
    at_end = room - weight * (slope + curvature)  # G at s = 1; at s = 0 it is 0
    s = np.where(bend > 0.0, inside, np.where(at_end > 0.0, 1.0, 0.0))
    with np.errstate(divide="ignore"):
        return -np.log1p(-s) / rate


def fit_model(steps: np.ndarray, reward: np.ndarray, rise: np.ndarray) -> ModelFit:
    """Least squares: the rate by search over the rewards, everything else linear.

    Args:
        steps: ``[T]``, rising.
        reward: ``[T]`` mean reward.
        rise: ``[T]`` SFT loss rise, nats per token, 0 at the first step.

    Raises:
        ValueError: fewer than four steps.

    """
    design = _Design(steps)
    found = design.fit(reward[None], rise[None])
    index, (start, room), (slope, curvature) = found.index[0], found.reward[0], found.loss[0]
    s = design.s[index]
    return ModelFit(
        rate=float(design.rates[index]),
        reward_room=float(room),
        loss_slope=float(slope),
        loss_curvature=float(curvature),
        reward_residual=_rms(reward - start - room * (2 * s - s * s)),
        loss_residual=_rms(rise - slope * s - curvature * s * s),
        saturates=bool(0 < index < _GRID - 1),
    )


def modelled_duration(
    curves: PromptCurves, weight: float, *, num_resamples: int = RESAMPLES, seed: int = 0
) -> Duration:
    """``t*`` of the model fitted to the curves; the interval refits it to every resample."""
    check_weight(weight)
    if len(curves.steps) < FEWEST_STEPS:
        return Duration(
            None,
            words=f"the model has more unknowns than {len(curves.steps)} steps can tell; give "
            f"{FEWEST_STEPS} or more",
        )
    design, start = _Design(curves.steps), float(curves.steps[0])

    def duration(rewards: np.ndarray, rises: np.ndarray) -> np.ndarray:
        found = design.fit(rewards, rises)
        rate, room = design.rates[found.index], found.reward[:, 1]
        return start + optimal_step(rate, room, found.loss[:, 0], found.loss[:, 1], weight)

    fit = fit_model(curves.steps, *curves.means())
    reward, rise = curves.means()
    step = float(duration(reward[None], rise[None])[0])
    interval, beyond = percentile_interval(curves, duration, num_resamples=num_resamples, seed=seed)
    words = []
    if not fit.saturates:
        words.append("the reward does not level off within the run, so the rate is a guess")
    if fit.reward_room <= 0.0:
        words.append("the fitted reward does not rise")
    if step > float(curves.steps[-1]):
        words.append(
            "the model would go on after the last step that was measured"
            + ("" if np.isinf(step) else f", to about step {step:.0f}")
        )
    return Duration(
        None if step > float(curves.steps[-1]) else step, interval, beyond, "; ".join(words)
    )


def pl_duration(rate: float, mu_loss: float, mu_reward: float, weight: float) -> float:
    """``log(1 + 1/(w kappa)) / rho``, steps since an SFT optimum; infinity for weight 0.

    Args:
        rate: ``rho``, per step.
        mu_loss: PL constant of the SFT loss, nats per token per squared parameter.
        mu_reward: PL constant of the reward, in its unit per squared parameter.
        weight: reward per nat.

    """
    check_weight(weight)
    for name, value in (("rate", rate), ("mu_loss", mu_loss), ("mu_reward", mu_reward)):
        if not value > 0.0:
            raise ValueError(f"{name} must be positive; got {value!r}")
    kappa = mu_loss / mu_reward
    return float("inf") if weight == 0.0 else float(np.log1p(1.0 / (weight * kappa)) / rate)


@dataclass(frozen=True)
class _Found:
    index: np.ndarray  # [B] into the rates
    reward: np.ndarray  # [B, 2] start, room
    loss: np.ndarray  # [B, 2] slope, curvature


class _Design:
    """Least-squares projections for every rate of the grid, shared by all resamples."""

    def __init__(self, steps: np.ndarray) -> None:
        if len(steps) < FEWEST_STEPS:
            raise ValueError(f"the model needs {FEWEST_STEPS} steps or more; got {len(steps)}")
        elapsed = np.asarray(steps, dtype=float) - float(steps[0])
        self.rates = np.geomspace(_SLOWEST, _FASTEST, _GRID) / elapsed[-1]
        self.s = -np.expm1(-self.rates[:, None] * elapsed)  # [grid, T]
        ones = np.ones_like(self.s)
        self._reward = np.stack([ones, 2 * self.s - self.s**2], axis=-1)  # [grid, T, 2]
        self._reward_inverse = np.linalg.pinv(self._reward)
        self._loss_inverse = np.linalg.pinv(np.stack([self.s, self.s**2], axis=-1))

    def fit(self, rewards: np.ndarray, rises: np.ndarray) -> _Found:
        """Fit ``[B, T]`` curves."""
        coefficients = np.einsum("gkt,bt->bgk", self._reward_inverse, rewards)
        fitted = np.einsum("gtk,bgk->bgt", self._reward, coefficients)
        errors = ((fitted - rewards[:, None]) ** 2).sum(-1)
        index = errors.argmin(-1)
        rows = np.arange(len(rewards))
        loss = np.einsum("bkt,bt->bk", self._loss_inverse[index], rises)
        return _Found(index, coefficients[rows, index], loss)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
