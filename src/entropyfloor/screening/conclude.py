"""What measured checkpoints say together: where to start RL, what they differ by, which gates hold.

**Recommendation.** Only checkpoints that are not flagged can be recommended; ``ready`` goes before
``undecided``. Among them, in this order of what is known:

    degenerate fraction   the lowest: it ordered outcomes best in METHODS.md, section 6
    held-out loss         the lowest
    neither               the last in the order given: the deepest that still clears tau_H. Highest
                          entropy would be the untrained model.

It stands beside what "highest pass@1" would have picked; predictors that would choose another
checkpoint are named.

**Gates** are limits that every checkpoint must keep, for CI and schedulers:

    --min_pass_at 16:0.6     pass@16 at least 0.6
    --min_coverage 0.9       share kept of the prompts that the base solves at least 0.9
    --max_degenerate 0.5     share of degenerate groups at most 0.5

A gate is decided by the number itself, so that its answer is yes or no; whether the number's 95 %
interval contains the limit is said beside it (``certain``). The base has no coverage of its own.
Where the base solves nothing there is nothing to lose, and that gate passes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropyfloor.screening.options import Gate, Judging
from entropyfloor.screening.paired import PairedComparison, compare_paired
from entropyfloor.screening.report import (
    CheckpointScreening,
    GateResult,
    Recommendation,
    ScreeningReport,
)
from entropyfloor.screening.verdict import READY, UNDECIDED
from entropyfloor.stats.groups import default_ks
from entropyfloor.stats.intervals import Interval

LESS_IS_BETTER = ("degenerate_fraction", "held_out_loss", "kl_to_base")
_PREDICTORS = (
    *("entropy_nats", "pass_at_1", "greedy_pass_at_1", "within_group_variance"),
    *LESS_IS_BETTER,
)


def predictor_values(checkpoint: CheckpointScreening) -> dict[str, float]:
    """Every predictor of the outcome of RL that is known, oriented so that more is better."""
    values = {name: getattr(checkpoint, name) for name in _PREDICTORS}
    largest = max(checkpoint.pass_at_k, default=1)
    if largest > 1:
        values[f"pass_at_{largest}"] = checkpoint.pass_at_k[largest]
    return {
        name: -value if name in LESS_IS_BETTER else value
        for name, value in values.items()
        if value is not None
    }


def recommend(checkpoints: Sequence[CheckpointScreening]) -> Recommendation:
    """Recommend one checkpoint, or none where all are flagged.

    Args:
        checkpoints: in order of depth; at least one.

    """
    values = [predictor_values(checkpoint) for checkpoint in checkpoints]
    shared = sorted(set.intersection(*map(set, values)))
    predictors = {
        name: max(zip(checkpoints, values, strict=True), key=lambda pair: pair[1][name])[0].name
        for name in shared
        if len({value[name] for value in values}) > 1
    }
    highest = predictors.get("pass_at_1")
    if highest is None and all(c.has_reward for c in checkpoints):
        highest = checkpoints[0].name
    chosen, reason = _choose(checkpoints)
    if chosen is None:
        return Recommendation(None, reason, highest, predictors=predictors)
    advice = Recommendation(
        chosen.name,
        reason,
        highest,
        predictors=predictors,
        disagreements=tuple(
            f"{predictor} would choose {name}"
            for predictor, name in predictors.items()
            if name != chosen.name
        ),
    )
    if highest is None or highest == chosen.name:
        return advice
    (other,) = (checkpoint for checkpoint in checkpoints if checkpoint.name == highest)
    costs, more_degenerate, less_pass = [], None, None
    if other.degenerate_fraction is not None and chosen.degenerate_fraction is not None:
        more_degenerate = other.degenerate_fraction - chosen.degenerate_fraction
        costs.append(
            f"{other.degenerate_fraction:.0%} instead of {chosen.degenerate_fraction:.0%} "
            "degenerate groups"
        )
    k = max((k for k in other.pass_at_k if k > 1 and k in chosen.pass_at_k), default=None)
    if k is not None:
        less_pass = chosen.pass_at_k[k] - other.pass_at_k[k]
        costs.append(f"pass@{k} {other.pass_at_k[k]:.2f} instead of {chosen.pass_at_k[k]:.2f}")
    costs.append(f"entropy {other.entropy_nats:.3f} instead of {chosen.entropy_nats:.3f} nats")
    return replace(
        advice,
        cost=f"it is {other.verdict}, with {', '.join(costs)}",
        cost_degenerate_fraction=more_degenerate,
        cost_pass_at_k=less_pass,
        k=k,
    )


def _choose(
    checkpoints: Sequence[CheckpointScreening],
) -> tuple[CheckpointScreening | None, str]:
    ready = [c for c in checkpoints if c.verdict == READY]
    open_ = [c for c in checkpoints if c.verdict == UNDECIDED]
    candidates = ready or open_
    if not candidates:
        return None, f"every checkpoint is flagged{_least_bad(checkpoints)}: do not start RL yet"
    among = "ready" if ready else "undecided (none is ready)"
    if len(checkpoints) == 1:
        return candidates[0], f"it is {candidates[0].verdict}, and the only checkpoint given"
    if len(candidates) == 1:
        return candidates[0], f"the only one that is {among}"
    first = f"of {len(candidates)} that are {among}, {{}}"
    if all(c.degenerate_fraction is not None for c in candidates):
        chosen = min(
            candidates,
            key=lambda c: (c.degenerate_fraction, -max(c.pass_at_k.values(), default=0.0)),
        )
        return chosen, first.format("the one with the fewest degenerate groups")
    if all(c.held_out_loss is not None for c in candidates):
        chosen = min(candidates, key=lambda c: c.held_out_loss or 0.0)
        return chosen, first.format("the one with the lowest held-out loss")
    return candidates[-1], first.format("the last in the order given, taken as the deepest")


def _least_bad(checkpoints: Sequence[CheckpointScreening]) -> str:
    known = [c for c in checkpoints if c.degenerate_fraction is not None]
    if len(known) < len(checkpoints) or not known:
        best = max(checkpoints, key=lambda c: c.entropy_nats)
        return f" ({best.name} has the highest entropy, {best.entropy_nats:.3f} nats)"
    best = min(known, key=lambda c: c.degenerate_fraction or 0.0)
    return f" ({best.name} has the fewest degenerate groups, {best.degenerate_fraction:.0%})"


# What rollouts are drawn by; where two screenings differ in it, a difference is not the models'.
_DRAWN_BY = ("temperature", "top_p", "top_k", "max_new_tokens", "engine", "dtype")


def conclude(
    checkpoints: Sequence[CheckpointScreening],
    settings: dict[str, Any],
    *,
    prompt_texts: Sequence[str] = (),
    compare_to: str,
    gates: Sequence[Gate] = (),
) -> ScreeningReport:
    """Build the report of checkpoints that were screened together.

    Args:
        checkpoints: in the order screened; at least one.
        settings: what they were screened with.
        prompt_texts: of the whole prompt set.
        compare_to: name of the checkpoint that the others are compared with.
        gates: limits that every checkpoint must keep.

    """
    (base,) = (checkpoint for checkpoint in checkpoints if checkpoint.name == compare_to)
    comparisons = tuple(
        compare_checkpoints(base, other, settings, prompt_texts=prompt_texts)
        for other in checkpoints
        # After a kill there may be none in common.
        if other is not base and _prompts(base) & _prompts(other)
    )
    return ScreeningReport(
        tuple(checkpoints),
        settings,
        recommend(checkpoints),
        comparisons=comparisons,
        gates=judge_gates(gates, checkpoints, comparisons),
    )


def _prompts(checkpoint: CheckpointScreening) -> set[int]:
    results = checkpoint.prompt_results
    return set() if results is None else set(results.prompt_indices)


def name_of(wanted: str | Path | None, names: Sequence[tuple[str, str]]) -> str:
    """The name of the checkpoint that is wanted by its name or path; the first for None.

    Args:
        wanted: a name, or what was given to load it.
        names: of every checkpoint, each with its path.

    Raises:
        ValueError: there is none; the message lists the names.

    """
    matching = [name for name, path in names if wanted is None or str(wanted) in (name, path)]
    if not matching:
        raise ValueError(
            f"no checkpoint {str(wanted)!r} is screened; there are {', '.join(n for n, _ in names)}"
        )
    return matching[0]


def compare_checkpoints(
    first: CheckpointScreening,
    second: CheckpointScreening,
    settings: dict[str, Any],
    *,
    prompt_texts: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> PairedComparison:
    """Compare two screened checkpoints; their prompt set is one."""
    assert first.prompt_results is not None and second.prompt_results is not None
    return compare_paired(
        (first.name, first.prompt_results),
        (second.name, second.prompt_results),
        group_size=settings["group_size"],
        ks=settings["ks"],
        prompt_texts=prompt_texts,
        notes=notes,
        seed=settings["seed"],
    )


def compare_screenings(
    first: tuple[ScreeningReport, CheckpointScreening],
    second: tuple[ScreeningReport, CheckpointScreening],
    prompt_texts: Sequence[str] = (),
) -> PairedComparison:
    """Compare a checkpoint of one screening with one of another (or of the same).

    Args:
        first: a report, and the checkpoint of it that is compared with.
        second: the same of the other.
        prompt_texts: of the prompt set.

    Raises:
        ValueError: the screenings cannot be compared: other prompts, another reward, another
            threshold for passing.

    """
    settings = [report.settings for report, _ in (first, second)]
    digests = [s["prompts"].get("digest") for s in settings]
    if digests[0] != digests[1]:
        sources = [f"{s['prompts']['source']} ({s['prompts']['count']} prompts)" for s in settings]
        raise ValueError(
            f"{first[1].name} was screened on {sources[0]} and {second[1].name} on {sources[1]}, "
            "which are not the same prompts: a paired comparison needs the same set in the same "
            "order; screen both on it"
        )
    for name in ("reward", "success_threshold"):
        values = [s.get(name) for s in settings]
        if values[0] != values[1]:
            raise ValueError(
                f"{name} is {values[0]} for {first[1].name} and {values[1]} for {second[1].name}: "
                "what passes must be the same for both; screen both with it"
            )
    notes = [
        f"{name} is {settings[0].get(name)} for {first[1].name} and {settings[1].get(name)} for "
        f"{second[1].name}: the differences are of checkpoints and sampling together"
        for name in _DRAWN_BY
        if settings[0].get(name) != settings[1].get(name)
    ]
    if len({s["group_size"] for s in settings}) > 1:
        notes.append(f"groups are of {settings[0]['group_size']}, as {first[1].name}'s were")
    return compare_checkpoints(
        first[1], second[1], settings[0], prompt_texts=prompt_texts, notes=notes
    )


def measured_ks(num_samples: int, judging: Judging, *, scored: bool) -> tuple[int, ...]:
    """The k at which pass@k is measured: those to report and those of gates, if scored.

    Raises:
        ValueError: a group or a k that the samples cannot show, or a gate that needs a reward.

    """
    if judging.gates and not scored:
        names = " and ".join(f"--{gate.flag}" for gate in judging.gates)
        raise ValueError(f"{names}: pass rates need a reward; give --reward, or leave it out")
    if not scored:
        return ()
    size = judging.group_size
    if num_samples < size:
        raise ValueError(
            f"{num_samples} samples per prompt cannot show how often a group of {size} "
            f"agrees; draw at least {size} samples, or set group_size to what RL will use"
        )
    reported = default_ks(num_samples) if judging.ks is None else judging.ks
    ks = sorted({*reported, *(gate.k for gate in judging.gates if gate.k is not None)})
    if wrong := [k for k in ks if not 1 <= k <= num_samples]:
        raise ValueError(
            f"pass@k needs 1 <= k <= num_samples ({num_samples}); got k = "
            f"{', '.join(map(str, wrong))}"
        )
    return tuple(ks)


def check_base(judging: Judging, checkpoints: int) -> None:
    """Raise ValueError for a gate on coverage without a checkpoint to compare with."""
    if judging.min_coverage is not None and checkpoints < 2:
        raise ValueError(
            "--min_coverage is about what a checkpoint keeps of what another one solves: give the "
            "base as a checkpoint too, as the first or with --compare_to"
        )


def judge_gates(
    gates: Sequence[Gate],
    checkpoints: Sequence[CheckpointScreening],
    comparisons: Sequence[PairedComparison],
) -> tuple[GateResult, ...]:
    """Every gate on every checkpoint, gate by gate."""
    coverage = {pair.second: pair.coverage for pair in comparisons}
    results = []
    for gate in gates:
        for checkpoint in checkpoints:
            if gate.flag != "min_coverage":
                interval = checkpoint.intervals.get(gate.metric)
                value = checkpoint.degenerate_fraction
                if gate.k is not None:
                    value = checkpoint.pass_at_k[gate.k]
            elif (kept := coverage.get(checkpoint.name)) is not None:
                value, interval = kept.kept, kept.kept_interval
            else:
                continue  # the base itself
            results.append(_judged(gate, checkpoint.name, value, interval))
    return tuple(results)


def _judged(
    gate: Gate, checkpoint: str, value: float | None, interval: Interval | None
) -> GateResult:
    over = value is not None and value > gate.limit
    passed = value is None or value == gate.limit or over != gate.is_upper
    certain = interval is not None and not interval.low <= gate.limit <= interval.high
    return GateResult(
        str(gate), checkpoint, gate.metric, value, interval, gate.limit, passed, certain
    )
