"""The controller that keeps entropy above a floor: a PID law on logarithms.

    e_t     = log(target / H_t)                        H_t: smoothed teacher-forced entropy
    log w_t = log w_0 + k (e_t - D r_t + sum of e_s / T)     r_t: smoothed change of log H a step

clipped to [w_min, w_max], where w_min is 0. Minimise the loss subject to entropy >= floor: w is the
multiplier of the entropy term. Logarithms make the law independent of the scale of either. The
integral part leaves no offset; the others damp: an integrator alone swings between too little and
too much, and so does a proportional part, because an optimiser with momentum answers many steps
late. The law looks D steps ahead instead. The sum is held where the weight is clipped, so that it
does not wind up. Pure numbers: no torch, no model, no clock.

Teacher-forced entropy is there at each step but is not what matters: a probe measures the entropy
of rollouts, and the target moves so that *those* end above the floor.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from entropyfloor_losses.inputs import check_not_negative, check_number, check_positive

# A floor that no weight can hold: the weight at its maximum and entropy below the floor for this
# many steps on end.
SATURATED_STEPS = 20
_LARGEST_ERROR = 1.5
_LARGEST_SURPLUS = 0.25  # what the sum counts of an entropy far above the target
_SMALLEST_WEIGHT = 5e-3
_ONSET = 1.3  # times the target: a model anchored to has to have more entropy than what is held
_SMALLEST_ENTROPY = 1e-9
_RATIO_RANGE = (0.2, 5.0)
_STATE = ("weight", "integral", "entropy", "rate", "ratio", "saturated_for")


@dataclass
class FloorController:
    """Weight of an entropy term, step by step.

    Args:
        floor: rollout entropy to stay above, nats.
        margin: what is aimed at is ``floor * (1 + margin)``.
        gain: k; a halved entropy multiplies the weight by ``2 ** k`` at once.
        time: T in steps.
        lead: D in steps.
        smoothing: of the entropy; 0 is none, the memory is about ``1 / (1 - smoothing)`` steps.
        max_weight: largest weight.
        initial_weight: w_0, the weight at the target before there is a sum.

    The remaining fields are the state, in `state_dict`.

    """

    floor: float
    margin: float = 0.25
    gain: float = 1.25
    time: float = 30.0
    lead: float = 4.0
    smoothing: float = 0.3
    max_weight: float = 2.0
    initial_weight: float = 0.05
    weight: float = 0.0
    integral: float = 0.0
    entropy: float | None = None
    rate: float = 0.0
    ratio: float = 1.0
    saturated_for: int = 0

    def __post_init__(self) -> None:
        for name in ("floor", "gain", "time", "max_weight", "initial_weight"):
            check_positive(name, getattr(self, name))
        for name in ("margin", "lead"):
            check_not_negative(name, getattr(self, name))
        check_number("smoothing", self.smoothing, lambda v: 0 <= v < 1, "in [0, 1)")
        if self.max_weight <= _SMALLEST_WEIGHT:
            raise ValueError(
                f"max_weight is {self.max_weight!r}; it must be above {_SMALLEST_WEIGHT}, the "
                "smallest weight that is applied"
            )

    @property
    def target(self) -> float:
        """Teacher-forced entropy aimed at, nats."""
        return self.floor * (1 + self.margin) / self.ratio

    @property
    def arriving(self) -> bool:
        """Whether entropy, as it changes, is next step within `_ONSET` times the target."""
        if self.entropy is None:
            return False
        return self.entropy * math.exp(min(self.rate, 0.0)) <= _ONSET * self.target

    @property
    def saturated(self) -> bool:
        """Whether the largest weight has failed to hold the floor for a while."""
        return self.saturated_for >= SATURATED_STEPS

    def update(self, entropy: float) -> float:
        """Take one step's mean teacher-forced entropy (nats), return the next step's weight.

        A value that is not finite (a batch without scored tokens) changes nothing.
        """
        if not math.isfinite(entropy):
            return self.weight
        before = self.entropy
        kept = 0.0 if before is None else self.smoothing
        self.entropy = kept * (before or 0.0) + (1 - kept) * max(entropy, _SMALLEST_ENTROPY)
        if before is not None:
            change = math.log(self.entropy / before)
            self.rate = self.smoothing * self.rate + (1 - self.smoothing) * change
        error = math.log(self.target / self.entropy)
        ahead = min(max(error - self.lead * self.rate, -2 * _LARGEST_ERROR), _LARGEST_ERROR)
        error = min(max(error, -_LARGEST_SURPLUS), _LARGEST_ERROR)
        start = math.log(self.initial_weight)
        low, high = math.log(_SMALLEST_WEIGHT), math.log(self.max_weight)
        # Two guards against wind-up: on the way down from far above the target the sum moves
        # slowly, and it is held while the weight is at a limit.
        held = self.integral
        self.integral += self.gain * error / self.time
        wanted = start + self.gain * ahead + self.integral
        reachable = min(max(wanted, low), high)
        if (wanted - reachable) * error > 0:
            self.integral = held
        self.weight = 0.0 if reachable <= low else math.exp(reachable)
        below = self.entropy * self.ratio < self.floor
        at_limit = self.weight >= self.max_weight * (1 - 1e-9)
        self.saturated_for = self.saturated_for + 1 if below and at_limit else 0
        return self.weight

    def rest(self) -> None:
        """No weight, and nothing summed: there is no term to weigh yet."""
        self.weight = self.integral = 0.0

    def correct(self, rollout_entropy: float, weight_of_new: float = 0.5) -> None:
        """Take a probe: the entropy of rollouts (nats) at the present teacher-forced entropy."""
        if self.entropy is None or not (math.isfinite(rollout_entropy) and rollout_entropy > 0):
            return
        seen = math.log(rollout_entropy / self.entropy)
        mixed = (1 - weight_of_new) * math.log(self.ratio) + weight_of_new * seen
        self.ratio = min(max(math.exp(mixed), _RATIO_RANGE[0]), _RATIO_RANGE[1])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly; JSON numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: a state that lacks something.

        """
        missing = [name for name in _STATE if name not in state]
        if missing:
            raise ValueError(f"the floor controller's state lacks {', '.join(missing)}")
        for name in _STATE:
            setattr(self, name, state[name])

    def settings(self) -> dict[str, Any]:
        """Settings without state."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _STATE}
