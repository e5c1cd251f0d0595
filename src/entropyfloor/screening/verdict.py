"""From the numbers of one checkpoint to a verdict in words.

With a reward the verdict rests on the mechanism at RL's group size, and entropy supports it:

    too many groups agree    degenerate fraction > 1/2
    too few rollouts pass    p̂ < p*(g): a prompt at that rate gives an all-wrong group more often
                             than not; pass@g, the share of groups with a pass, says the same
    low entropy              mean rollout entropy < tau_H

    collapsed   too many groups agree, and entropy is low: rollouts do not differ any more
    at risk     any one of the three
    undecided   none for certain, but an interval contains 1/2, or p*(g)
    ready       otherwise

Without a reward it rests on entropy alone (stage 1 of the rank-inversion paper, arXiv 2606.18487):
below tau_H / 2 collapsed (the factor is our choice), below tau_H at risk, above it ready, undecided
where the interval contains tau_H. The paper calls its 0.18 nats specific to its model family: the
order of checkpoints carries over, the number may not, so it is a parameter. Across different losses
entropy was the weaker predictor in our toy (METHODS.md, section 6).

A checkpoint more than half of whose rollouts are degenerate text that does not pass (loops, blanks,
noise: ``texts.py``) is *junk* whatever its entropy: that is no exploration. One that is
collapsed stays so, and the share is said.

"Below" and "above" mean the whole 95 % interval where there is one, else the number itself.
``at risk``, ``collapsed`` and ``junk`` are flagged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from entropyfloor.screening.options import TAU_H, check_tau_h
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.groups import shaping_is_larger_part
from entropyfloor.stats.intervals import Interval

READY, AT_RISK, COLLAPSED, UNDECIDED, JUNK = VERDICTS = (
    *("ready", "at risk", "collapsed", "undecided", "junk"),
)
FLAGGED = (AT_RISK, COLLAPSED, JUNK)
MAJORITY = 0.5
# Without a reward: a checkpoint below this share of tau_H is called collapsed (our choice).
COLLAPSED_SHARE = 0.5
# A share of rollouts cut off by the length limit above which length, not skill, shapes the numbers
# (our choice).
TRUNCATED_SHARE = 0.1
# A share of junk that is worth a note below the majority that makes the verdict (our choice).
JUNK_SHARE = 0.05
# Endless newlines and the like; METHODS.md: watch for it whenever entropy is raised (our choice).
REPETITION_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """The verdict, whether it is flagged, why, and what else to know."""

    verdict: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def flagged(self) -> bool:
        """Whether it is ``at risk``, ``collapsed`` or ``junk``."""
        return self.verdict in FLAGGED


def judge(
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Interval],
    *,
    tau_h: float = TAU_H,
    group_size: int | None = None,
    temperature: float = 1.0,
    sequential: SequentialRecord | None = None,
) -> Verdict:
    """Judge one checkpoint.

    Args:
        metrics: by name; ``entropy_nats`` at least. ``degenerate_fraction`` and
            ``p_hat_over_p_star`` are there if rollouts were scored.
        intervals: 95 % intervals by the same names, where there are any.
        tau_h: nats.
        group_size: rollouts per prompt in RL.
        temperature: what the rollouts were drawn at.
        sequential: what ``until_decided`` found; its decision is taken for the entropy's.

    """
    check_tau_h(tau_h)
    verdict = _whatever_the_text(metrics, intervals, tau_h, group_size, temperature, sequential)
    junk = metrics.get("junk_fraction") or 0.0
    words = f"{junk:.0%} of rollouts are degenerate text and do not pass"
    most = junk > 0.0 and _side(junk, intervals.get("junk_fraction"), MAJORITY) > 0
    if most and verdict.verdict != COLLAPSED:
        entropy = metrics["entropy_nats"]
        reason = f"{words}: their entropy, {entropy:.3f} nats with all others, is no exploration"
        # What speaks against a checkpoint besides; nothing that speaks for it.
        against = verdict.reasons if verdict.flagged else ()
        return Verdict(JUNK, (reason, *against), verdict.notes)
    if junk > JUNK_SHARE:
        return replace(verdict, notes=(*verdict.notes, f"{words}: read some of them"))
    return verdict


def _whatever_the_text(
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Interval],
    tau_h: float,
    group_size: int | None,
    temperature: float,
    sequential: SequentialRecord | None,
) -> Verdict:
    """Judge by reward and entropy alone."""
    entropy = metrics["entropy_nats"]
    side = _side(entropy, intervals.get("entropy_nats"), tau_h)
    if sequential is not None:
        side = {"above": 1, "below": -1}.get(sequential.decision, 0)
    words = f"mean rollout entropy {entropy:.3f} nats"
    low = (
        f"{words} is below tau_H = {tau_h:g}: the rollouts of one prompt hardly differ, so RL has "
        "little to choose from"
    )
    unsure = (
        f"{words}: its interval{_ends(intervals.get('entropy_nats'))} contains tau_H = {tau_h:g}; "
        "more prompts or samples could turn the verdict"
    )
    notes = _notes(metrics, tau_h, temperature)
    ratio = metrics.get("p_hat_over_p_star")
    if ratio is None:
        notes.append("no reward: the verdict rests on entropy against tau_H alone")
        deep = _side(entropy, intervals.get("entropy_nats"), COLLAPSED_SHARE * tau_h) < 0
        if side < 0:
            return Verdict(COLLAPSED if deep else AT_RISK, (low,), tuple(notes))
        if side == 0:
            return Verdict(UNDECIDED, (unsure,), tuple(notes))
        return Verdict(READY, (f"{words} is above tau_H = {tau_h:g}",), tuple(notes))

    degenerate = metrics.get("degenerate_fraction")
    agree = _side(degenerate, intervals.get("degenerate_fraction"), MAJORITY)
    passing = _side(ratio, intervals.get("p_hat_over_p_star"), 1.0)
    against, open_ = [], []
    if degenerate is not None and agree >= 0:
        split = (
            f"{degenerate:.0%} of groups of {group_size} agree on their reward and teach nothing "
            f"({metrics['degenerate_all_wrong']:.0%} all wrong, "
            f"{metrics['degenerate_all_right']:.0%} all right; "
            f"pass@{group_size} {1.0 - metrics['degenerate_all_wrong']:.2f})"
        )
        if agree > 0:
            against.append(split)
        else:
            ends = _ends(intervals.get("degenerate_fraction"))
            open_.append(f"{split}; the interval{ends} contains one half")
    if passing < 0:
        against.append(
            f"the pass rate is {ratio:.2f} of p*({group_size}): a prompt at that rate gives an "
            "all-wrong group more often than not"
        )
    elif passing == 0:
        open_.append(
            f"the pass rate is {ratio:.2f} of p*({group_size}); the interval"
            f"{_ends(intervals.get('p_hat_over_p_star'))} contains 1"
        )
    if side < 0:
        if not against:
            notes.append(
                "entropy and the reward disagree: groups still differ while entropy is low"
            )
        against.append(low)
    elif side == 0:
        notes.append(unsure)
    elif against:
        notes.append("entropy is above tau_H: it does not see what the reward sees")
    if against:
        collapsed = agree > 0 and side < 0
        return Verdict(COLLAPSED if collapsed else AT_RISK, tuple(against), (*open_, *notes))
    if open_:
        return Verdict(UNDECIDED, tuple(open_), tuple(notes))
    good = [f"the pass rate is {ratio:.2f} of p*({group_size})"]
    if degenerate is not None:
        good.insert(0, f"{1.0 - degenerate:.0%} of groups of {group_size} differ in their reward")
    return Verdict(READY, (", ".join(good),), tuple(notes))


def _side(value: float | None, interval: Interval | None, threshold: float) -> int:
    """-1 below, 1 at or above, 0 where the interval contains the threshold."""
    if value is None:
        return -1
    low, high = (value, value) if interval is None else interval
    return -1 if high < threshold else 1 if low >= threshold else 0


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f", {interval.low:.3f} to {interval.high:.3f},"


def _notes(metrics: Mapping[str, Any], tau_h: float, temperature: float) -> list[str]:
    notes = []
    if (truncated := metrics.get("truncated_fraction", 0.0)) > TRUNCATED_SHARE:
        notes.append(
            f"{truncated:.0%} of rollouts hit the length limit: raise max_new_tokens, or "
            "read entropy and pass rates as those of cut-off answers"
        )
    if (repeated := metrics.get("repetition", 0.0)) > REPETITION_SHARE:
        notes.append(
            f"{repeated:.0%} of 4-grams repeat an earlier one of their rollout: read some rollouts "
            "before trusting the entropy"
        )
    shaped = metrics.get("outcome_degenerate_fraction", 0.0) or 0.0
    differ = 1.0 - metrics.get("degenerate_fraction", 0.0) + shaped
    if shaping_is_larger_part(shaped, differ):
        notes.append(
            f"{shaped:.0%} of groups all pass or all fail while their shaped rewards differ, the "
            f"larger part of the {differ:.0%} that have a gradient: it says nothing about passing"
        )
    if temperature != 1.0:
        notes.append(
            f"rollouts were drawn at temperature {temperature:g}; tau_H is about rollouts at "
            "temperature 1"
        )
    return notes
