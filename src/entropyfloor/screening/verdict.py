"""From the numbers of one checkpoint to a verdict in words.

Stage 1 of the rank-inversion paper (arXiv 2606.18487): a checkpoint whose own rollouts at
temperature 1 have a mean next-token entropy below ``tau_H`` is flagged. The paper calls its 0.18
nats specific to its model family: the order of checkpoints carries over, the number may not, so it
is a parameter.

Only the entropy flags. What else speaks for or against a checkpoint is a note beside the verdict.
"""

import math
from dataclasses import dataclass

from entropyfloor.measures.intervals import Interval

TAU_H = 0.18
# A share of rollouts cut off by the length limit above which length, not skill, shapes the numbers
# (our choice).
TRUNCATED_SHARE = 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint is flagged, why (empty if it is not), and what else to know."""

    flagged: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def check_tau_h(tau_h: float) -> None:
    """Raise ValueError unless the threshold is a finite number of nats, zero or more."""
    if not (math.isfinite(tau_h) and tau_h >= 0.0):
        raise ValueError(f"tau_h is an entropy in nats, 0 or more, such as {TAU_H}; got {tau_h}")


def verdict(
    entropy_nats: float,
    *,
    tau_h: float = TAU_H,
    interval: Interval | None = None,
    p_hat_over_p_star: float | None = None,
    degenerate_fraction: float | None = None,
    group_size: int | None = None,
    truncated_fraction: float = 0.0,
    temperature: float = 1.0,
) -> Verdict:
    """Judge one checkpoint.

    Args:
        entropy_nats: mean next-token entropy of its rollouts.
        tau_h: flagged below this many nats.
        interval: interval of the entropy.
        p_hat_over_p_star: mean pass rate over p*(group_size); None without a reward.
        degenerate_fraction: in [0, 1]; None without a reward.
        group_size: rollouts per prompt in RL.
        truncated_fraction: share of rollouts that hit the length limit.
        temperature: what the rollouts were drawn at.

    """
    check_tau_h(tau_h)
    reasons, notes = [], []
    if entropy_nats < tau_h:
        reasons.append(
            f"mean rollout entropy {entropy_nats:.3f} nats is below tau_H = {tau_h:g}: the "
            "rollouts of one prompt hardly differ, so RL has little to choose from"
        )
    if interval is not None and interval.low < tau_h <= interval.high:
        notes.append(
            f"the interval of the entropy, {interval.low:.3f} to {interval.high:.3f}, contains "
            f"tau_H = {tau_h:g}: more prompts or samples could turn the verdict"
        )
    if p_hat_over_p_star is not None and p_hat_over_p_star < 1.0:
        notes.append(
            f"the pass rate is {p_hat_over_p_star:.2f} of p*({group_size}): a prompt at that rate "
            "gives an all-wrong group more often than not"
        )
    if degenerate_fraction is not None and degenerate_fraction > 0.5:
        notes.append(
            f"{degenerate_fraction:.0%} of groups of {group_size} would agree on their reward and "
            "teach nothing"
        )
    if truncated_fraction > TRUNCATED_SHARE:
        notes.append(
            f"{truncated_fraction:.0%} of rollouts hit the length limit: raise max_new_tokens, or "
            "read entropy and pass rates as those of cut-off answers"
        )
    if temperature != 1.0:
        notes.append(
            f"rollouts were drawn at temperature {temperature:g}; tau_H is about rollouts at "
            "temperature 1"
        )
    return Verdict(bool(reasons), tuple(reasons), tuple(notes))
