"""How long to train: where ``reward - weight * (SFT loss rise)`` is greatest.

By measurement:

    G_w(t) = J(t) - w (L(t) - L(0))          w in units of reward per nat
    best step        the first t of greatest G_w
    threshold step   the first t of greatest G_1: over any stretch that begins there, the SFT loss
                     rises by at least as much as the reward does

"Rises faster than" needs a common unit: the threshold compares the numbers as they are, reward
against nats per token, which is the weight 1. Reading the threshold off differences between
neighbouring checkpoints instead would let noise decide it.

Intervals resample demonstrations and prompts, independently of each other, and take the percentile
interval of what comes out; they are intervals of an argmax over the steps that were measured.

By a model, which is what the Polyak-Lojasiewicz condition would make of the curves:

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

An estimate of the PL constant along a trajectory:

    PL:         |grad L|^2 >= 2 mu (L - L*)          for every theta of a region
    estimate:   min over visited points of |grad L|^2 / (2 (L - L_best))

It is an estimate and not a bound: only visited points count, ``L_best`` stands for the unknown
``L*`` and is no smaller, and both make it too large. The best point itself says nothing (0/0). A
squared norm must be free of sampling noise, which only adds to it: see ``alignment.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entropyfloor.stats.intervals import RESAMPLES, Interval

FEWEST_STEPS = 4  # of the model: J has three unknowns; with three points every curve fits
_GRID = 240
_SLOWEST, _FASTEST = 0.05, 30.0  # rho times the run's length: a straight line, and one that jumps
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class PromptCurves:
    """What was measured at ``T`` steps, one number per prompt or demonstration.

    Raises:
        ValueError: fewer than two steps, steps that do not rise, shapes that do not fit.

    """

    steps: np.ndarray  # [T], rising; the first is where the run started
    rewards: np.ndarray  # [T, P] mean reward of each prompt's rollouts
    losses: np.ndarray  # [T, D] summed loss of each demonstration, nats
    tokens: np.ndarray  # [D] its tokens

    def __post_init__(self) -> None:
        count = len(self.steps)
        if count < 2 or bool((np.diff(self.steps) <= 0).any()):
            raise ValueError(
                "a duration needs two or more steps in rising order; got "
                f"{np.asarray(self.steps).tolist()}"
            )
        if len(self.rewards) != count or self.losses.shape != (count, len(self.tokens)):
            raise ValueError(
                f"{count} steps need rewards [{count}, P] and losses [{count}, D] with tokens [D]; "
                f"got {self.rewards.shape}, {self.losses.shape} and {self.tokens.shape}"
            )

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """``J(t)`` and ``L(t) - L(0)``, each ``[T]``."""
        rise = (self.losses - self.losses[0]).sum(-1) / self.tokens.sum()
        return self.rewards.mean(-1), rise

    def resampled(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, ``[count, T]`` each, with prompts and demonstrations drawn again."""
        rng = np.random.default_rng(seed)

        def draws(size: int) -> np.ndarray:
            return rng.multinomial(size, np.full(size, 1.0 / size), size=count).astype(float)

        prompts, rows = draws(self.rewards.shape[1]), draws(len(self.tokens))
        rewards = prompts @ self.rewards.T / self.rewards.shape[1]
        rise = rows @ (self.losses - self.losses[0]).T / (rows @ self.tokens)[:, None]
        return rewards, rise


@dataclass(frozen=True)
class Duration:
    """A step to stop at."""

    step: float | None  # None where the answer lies beyond what was measured, or cannot be had
    # 95 %; an end that lies beyond the run is the last step (see share_beyond)
    interval: Interval | None = None
    share_beyond: float = 0.0  # share of resamples that want to go on after the last step
    words: str = ""  # what to know about it; empty if nothing


def best_index(rewards: np.ndarray, rises: np.ndarray, weight: float) -> np.ndarray:
    """Index of the first greatest ``rewards - weight * rises`` over the last axis."""
    return np.argmax(rewards - weight * rises, axis=-1)


def measured_duration(curves: PromptCurves, weight: float, *, seed: int = 0) -> Duration:
    """Find the best step among those measured; ``weight`` 1 gives the threshold.

    The last step is an answer of a kind: up to there the reward was worth it, so that the true
    best may lie beyond. ``words`` says so.
    """
    index = int(best_index(*curves.means(), weight))
    last = len(curves.steps) - 1
    resampled = best_index(*curves.resampled(RESAMPLES, seed), weight)
    return Duration(
        float(curves.steps[index]),
        _step_interval(curves.steps[resampled]),
        float((resampled == last).mean()),
        "the last step that was measured: the best may lie beyond" if index == last else "",
    )


@dataclass(frozen=True)
class ModelFit:
    """The model's constants for one run."""

    rate: float  # rho, per step
    reward_room: float  # D, reward that the model says can be won in all
    loss_slope: float  # b, nats per token
    loss_curvature: float  # c, nats per token
    reward_residual: float  # root mean square of what the fit leaves of the rewards
    loss_residual: float  # the same of the SFT loss rise, nats per token
    # False where the rate is at an end of what was searched, so that the reward has not begun to
    # level off (or jumped at once) and D and rho mean nothing apart
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
    (index,), ((start, room),), ((slope, curvature),) = design.fit(reward[None], rise[None])
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
    if len(curves.steps) < FEWEST_STEPS:
        return Duration(
            None,
            words=f"the model has more unknowns than {len(curves.steps)} steps can tell; give "
            f"{FEWEST_STEPS} or more",
        )
    design, start = _Design(curves.steps), float(curves.steps[0])

    def duration(rewards: np.ndarray, rises: np.ndarray) -> np.ndarray:
        index, reward, loss = design.fit(rewards, rises)
        rate = design.rates[index]
        return start + optimal_step(rate, reward[:, 1], loss[:, 0], loss[:, 1], weight)

    reward, rise = curves.means()
    fit = fit_model(curves.steps, reward, rise)
    step, last = float(duration(reward[None], rise[None])[0]), float(curves.steps[-1])
    resampled = duration(*curves.resampled(num_resamples, seed))
    known = resampled[~np.isnan(resampled)]
    interval, beyond = None, 0.0
    if known.size >= num_resamples / 2:  # else over half of the resamples have no answer
        interval, beyond = _step_interval(np.minimum(known, last)), float((known > last).mean())
    words = []
    if not fit.saturates:
        words.append("the reward does not level off within the run, so the rate is a guess")
    if fit.reward_room <= 0.0:
        words.append("the fitted reward does not rise")
    if step > last:
        words.append(
            "the model would go on after the last step that was measured"
            + ("" if np.isinf(step) else f", to about step {step:.0f}")
        )
    return Duration(None if step > last else step, interval, beyond, "; ".join(words))


def pl_duration(rate: float, mu_loss: float, mu_reward: float, weight: float) -> float:
    """``log(1 + 1/(w kappa)) / rho``, steps since an SFT optimum; infinity for weight 0.

    Args:
        rate: ``rho``, per step.
        mu_loss: PL constant of the SFT loss, nats per token per squared parameter.
        mu_reward: PL constant of the reward, in its unit per squared parameter.
        weight: reward per nat.

    """
    for name, value in (("rate", rate), ("mu_loss", mu_loss), ("mu_reward", mu_reward)):
        if not value > 0.0:
            raise ValueError(f"{name} must be positive; got {value!r}")
    kappa = mu_loss / mu_reward
    return float("inf") if weight == 0.0 else float(np.log1p(1.0 / (weight * kappa)) / rate)


@dataclass(frozen=True)
class PLEstimate:
    """The estimate and where it comes from."""

    mu: float | None  # the estimate; None where no visited point says anything
    at: int | None  # index of the point that gives it
    points: int  # how many points could be used


def estimate_pl(losses: Sequence[float], squared_norms: Sequence[float | None]) -> PLEstimate:
    """Estimate ``mu`` of an objective that is minimised; give the negative of a reward.

    Args:
        losses: at the points of the trajectory.
        squared_norms: ``|grad L|^2`` there; None, or not positive, where it is not known.

    """
    if len(losses) != len(squared_norms):
        raise ValueError(
            f"one squared gradient norm per loss is needed; got {len(squared_norms)} and "
            f"{len(losses)}"
        )
    best = min(losses, default=0.0)
    ratios = [
        (norm / (2.0 * (loss - best)), index)
        for index, (loss, norm) in enumerate(zip(losses, squared_norms, strict=True))
        if norm is not None and norm > 0.0 and loss > best
    ]
    if not ratios:
        return PLEstimate(None, None, 0)
    mu, index = min(ratios)
    return PLEstimate(mu, index, len(ratios))


def _step_interval(steps: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.quantile(np.asarray(steps, dtype=float), _TAILS, method="nearest")
    return Interval(float(low), float(high))


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

    def fit(
        self, rewards: np.ndarray, rises: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of ``[B, T]`` curves: indices of rates [B], (start, room) [B, 2] and (b, c) [B, 2]."""
        coefficients = np.einsum("gkt,bt->bgk", self._reward_inverse, rewards)
        fitted = np.einsum("gtk,bgk->bgt", self._reward, coefficients)
        errors = ((fitted - rewards[:, None]) ** 2).sum(-1)
        index = errors.argmin(-1)
        rows = np.arange(len(rewards))
        loss = np.einsum("bkt,bt->bk", self._loss_inverse[index], rises)
        return index, coefficients[rows, index], loss


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
