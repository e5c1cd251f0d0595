"""Small records inside a screening report: histogram, example rollouts, advice, calibration."""

from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; ``len(edges) == len(counts) + 1``, the last bin closed on the right."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class PromptResults:
    """What a checkpoint's rollouts came to, prompt by prompt: what a paired comparison needs."""

    prompt_indices: tuple[int, ...]  # rows of the prompt set, rising
    num_samples: tuple[int, ...]  # rollouts
    num_tokens: tuple[int, ...]  # generated tokens over all of them
    entropy_sums: tuple[float, ...]  # nats, summed over these tokens
    # Rollouts that passed; None where the reward does not apply, or without one
    num_passed: tuple[int | None, ...]


@dataclass(frozen=True)
class ExampleRollout:
    """One rollout, to be shown beside those of other checkpoints on the same prompt."""

    prompt_index: int  # row of the prompt set
    sample_index: int  # which of the prompt's rollouts
    prompt: str  # its text; a conversation is written as role: content lines
    text: str  # the completion, without special tokens
    num_tokens: int  # generated tokens
    entropy_nats: float  # mean over them
    reward: float | None  # None without a reward, or where it does not apply
    truncated: bool  # it hit the length limit


@dataclass(frozen=True)
class DegenerateExample:
    """A rollout that is degenerate text, and its kind (``screening/degenerate_text.py``)."""

    kind: str
    rollout: ExampleRollout


@dataclass(frozen=True)
class Recommendation:
    """Which checkpoint to start RL from, beside what "highest pass@1" would have picked."""

    name: str | None  # the checkpoint; None if none can be recommended
    reason: str  # in words
    # The checkpoint of the highest pass@1; None without a reward
    highest_pass_at_1: str | None = None
    cost: str = ""  # what that one is instead, in words ("it is ..."); empty if it is the same
    cost_degenerate_fraction: float | None = None  # how much larger its degenerate fraction is
    cost_pass_at_k: float | None = None  # how much smaller its pass@k at the largest k is
    k: int | None = None  # that k
    # Predictor -> the checkpoint that it would choose
    predictors: dict[str, str] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()  # which predictors choose another checkpoint, in words


@dataclass(frozen=True)
class GateResult:
    """One gate on one checkpoint."""

    gate: str  # as it was given, min_pass_at 16:0.6
    checkpoint: str  # its name
    metric: str  # pass_at_16, coverage or degenerate_fraction
    value: float | None  # what it is; None if the base of coverage solves nothing
    interval: Interval | None  # 95 %, where there is one
    limit: float  # that it must keep
    passed: bool  # whether it does
    certain: bool  # whether the interval leaves the limit out


@dataclass(frozen=True)
class PredictorCorrelation:
    """Rank correlation of one predictor with the outcome after RL."""

    predictor: str  # measure name
    spearman: float  # in [-1, 1]
    p_value: float  # two-sided, of no association
    method: str  # exact (all permutations) or permutation (random ones)
    num_checkpoints: int  # pairs


@dataclass(frozen=True)
class Calibration:
    """tau_H fitted on a user's own outcomes after RL."""

    num_checkpoints: int  # checkpoints with an entropy and an outcome
    correlations: tuple[PredictorCorrelation, ...]  # one per predictor
    tau_h: float | None  # fitted threshold, nats; None if there is too little data to fit
    outcome_cut: float | None  # a checkpoint is good if its outcome is at least this
    training_error: float | None  # share of checkpoints on the wrong side of the threshold
    leave_one_out_error: float | None  # the same with the threshold fitted on the others
    message: str  # in words, also what is missing


def plain(value: Any) -> Any:
    """Tuples to lists and keys to text, so that JSON gives back what was written."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def restore(kind: Any, value: Any) -> Any:
    """Build what an annotation says from JSON data: undo ``dataclasses.asdict`` and `plain`.

    Args:
        kind: a dataclass, a named tuple, ``tuple[X, ...]``, ``list[X]``, ``dict[str, X]`` (or of
            other keys), any of them ``| None``; all else is left as it is.
        value: from JSON.

    """
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(value, dict):
        if isinstance(kind, type) and is_dataclass(kind):
            fields = get_type_hints(kind)
            return kind(**{name: restore(fields[name], part) for name, part in value.items()})
        if origin is dict:
            return {parts[0](key): restore(parts[1], part) for key, part in value.items()}
    if isinstance(value, list):
        if origin in (tuple, list):
            return origin(restore(parts[0], part) for part in value)
        if isinstance(kind, type) and issubclass(kind, tuple):
            return kind(*value)
    if type(None) in parts and value is not None:
        return restore(next(part for part in parts if part is not type(None)), value)
    return value
