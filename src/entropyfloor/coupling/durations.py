"""How long to train: where ``reward - weight * (SFT loss rise)`` is greatest, by measurement.

    G_w(t) = J(t) - w (L(t) - L(0))          w in units of reward per nat
    best step        the first t of greatest G_w
    threshold step   the first t of greatest G_1: over any stretch that begins there, the SFT loss
                     rises by at least as much as the reward does

"Rises faster than" needs a common unit: the threshold compares the numbers as they are, reward
against nats per token, which is the weight 1. Reading the threshold off differences between
neighbouring checkpoints instead would let noise decide it.

Intervals resample demonstrations and prompts, independently of each other, and take the percentile
interval of what comes out; they are intervals of an argmax over the steps that were measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entropyfloor.stats.intervals import RESAMPLES, Interval

_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class PromptCurves:
    """What was measured at ``T`` steps, one number per prompt or demonstration.

    Attributes:
        steps: ``[T]``, rising; the first is where the run started.
        rewards: ``[T, P]`` mean reward of each prompt's rollouts.
        losses: ``[T, D]`` summed loss of each demonstration, nats.
        tokens: ``[D]`` its tokens.

    Raises:
        ValueError: fewer than two steps, steps that do not rise, shapes that do not fit.

    """

    steps: np.ndarray
    rewards: np.ndarray
    losses: np.ndarray
    tokens: np.ndarray

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
    """A step to stop at.

    Attributes:
        step: None where the answer lies beyond what was measured, or cannot be had.
        interval: 95 %; an end that lies beyond the run is the last step (see ``share_beyond``).
        share_beyond: share of resamples that want to go on after the last step.
        words: what to know about it; empty if nothing.

    """

    step: float | None
    interval: Interval | None = None
    share_beyond: float = 0.0
    words: str = ""


def best_index(rewards: np.ndarray, rises: np.ndarray, weight: float) -> np.ndarray:
    """Index of the first greatest ``rewards - weight * rises`` over the last axis."""
    return np.argmax(rewards - weight * rises, axis=-1)


def measured_duration(
    curves: PromptCurves, weight: float, *, num_resamples: int = RESAMPLES, seed: int = 0
) -> Duration:
    """Find the best step among those measured; ``weight`` 1 gives the threshold.

    The last step is an answer of a kind: up to there the reward was worth it, so that the true
    best may lie beyond. ``words`` says so.
    """
    check_weight(weight)
    index = int(best_index(*curves.means(), weight))
    last = len(curves.steps) - 1
    found = best_index(*curves.resampled(num_resamples, seed), weight)
    return Duration(
        float(curves.steps[index]),
        _step_interval(curves.steps[found]),
        float((found == last).mean()),
        "the last step that was measured: the best may lie beyond" if index == last else "",
    )


def percentile_interval(
    curves: PromptCurves,
    duration: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    num_resamples: int,
    seed: int,
) -> tuple[Interval | None, float]:
    """Interval of any ``duration(rewards [B, T], rises [B, T]) -> [B]`` steps.

    Steps beyond the last one (infinity too) count as the last; steps that are NaN are left out.

    Returns:
        The interval (None if over half of the resamples have no answer) and the share beyond.

    """
    found = duration(*curves.resampled(num_resamples, seed))
    last = float(curves.steps[-1])
    known = found[~np.isnan(found)]
    if known.size < num_resamples / 2:
        return None, 0.0
    return _step_interval(np.minimum(known, last)), float((known > last).mean())


def check_weight(weight: float) -> None:
    """Raise ValueError for a weight that is negative or not finite."""
    if not 0.0 <= weight < float("inf"):
        raise ValueError(
            f"weight must be 0 or positive, in units of reward per nat of SFT loss; got {weight!r}"
        )


def _step_interval(steps: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.quantile(np.asarray(steps, dtype=float), _TAILS, method="nearest")
    return Interval(float(low), float(high))
