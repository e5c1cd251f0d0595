"""What a screening found, as data: a record per checkpoint, and the settings behind them."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from entropyfloor.io import plain, restore, save_json
from entropyfloor.screening.paired import PairedComparison, PromptResults
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; ``len(edges) == len(counts) + 1``, the last bin closed on the right."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


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
    """A rollout that is degenerate text, and its kind (``screening/texts.py``)."""

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


SCHEMA = "entropyfloor.screening"
SCHEMA_VERSION = 2

_NEEDS_REWARD = (
    "pass_at_1",
    "pass_at_k",
    "degenerate_fraction",
    "degenerate_all_wrong",
    "degenerate_all_right",
    "outcome_degenerate_fraction",
    "within_group_variance",
    "p_hat_over_p_star",
    "mean_reward",
    "num_scored_prompts",
    "greedy_pass_at_1",
    "degenerate_predicted",
    "degenerate_predicted_all_wrong",
    "degenerate_predicted_all_right",
    "per_prompt_pass_rates",
)


@dataclass(frozen=True)
class CheckpointScreening:
    """The measures of one checkpoint. Without a reward, those that need one are None (or empty)."""

    name: str  # short name, unique in the report
    path: str  # what was loaded
    num_prompts: int  # prompts in the set
    num_rollouts: int  # rollouts over all prompts
    # Token-weighted mean Shannon entropy of the next-token distribution at temperature 1, over all
    # generated tokens, the end-of-sequence token included
    entropy_nats: float
    unique_fraction: float  # distinct completions of a prompt over its rollouts, mean over prompts
    mean_tokens: float  # generated tokens per rollout, the end-of-sequence token included
    truncated_fraction: float  # rollouts that hit the length limit
    num_scored_prompts: int | None = None  # prompts that the reward applies to
    pass_at_1: float | None = None  # mean pass rate
    # K -> unbiased pass@k, mean over prompts
    pass_at_k: dict[int, float] = field(default_factory=dict)
    # Groups whose rewards all agree, unbiased, mean over prompts
    degenerate_fraction: float | None = None
    degenerate_all_wrong: float | None = None  # the part of it where all are wrong
    degenerate_all_right: float | None = None  # the part of it where all are right
    # P(1-p)(g-1)/g, unbiased, mean over prompts; None for one sample per prompt
    within_group_variance: float | None = None
    p_hat_over_p_star: float | None = None  # pass_at_1 / p*(group_size)
    mean_reward: float | None = None  # mean of the reward itself
    # 95 % interval by measure name (pass_at_8 for k = 8), where there is one
    intervals: dict[str, Interval] = field(default_factory=dict)
    verdict: str = "undecided"  # ready, at risk, collapsed, junk or undecided
    # Mean entropy of a rollout's tokens, mean over rollouts, nats
    entropy_sequence_mean: float | None = None
    entropy_sequence_p10: float | None = None  # the tenth percentile of that over rollouts, nats
    entropy_sequence_p25: float | None = None  # the lower quartile
    temperature: float = 1.0  # what the rollouts were drawn at
    entropy_temperature: float = 1.0  # what every entropy here is at
    # Similarity of a prompt's rollouts to each other, in [0, 1], mean over prompts; None for one
    # sample per prompt
    self_bleu: float | None = None
    # Share of a rollout's token 4-grams that it already had, mean over rollouts
    repetition: float | None = None
    # Pass rate of one greedy rollout per prompt; None if none was drawn
    greedy_pass_at_1: float | None = None
    # p^g + (1-p)^g at the *mean* pass rate, as p_hat_over_p_star presumes; degenerate_fraction
    # above it is the spread between prompts
    degenerate_predicted: float | None = None
    degenerate_predicted_all_wrong: float | None = None  # its part (1-p)^g
    degenerate_predicted_all_right: float | None = None  # its part p^g
    per_prompt_pass_rates: tuple[float, ...] = ()  # one per scored prompt, in order
    # The part of it where rewards differ all the same, because they are shaped: an advantage that
    # says nothing about passing
    outcome_degenerate_fraction: float | None = None
    token_entropy_histogram: Histogram | None = None  # of all generated tokens, nats
    # What its rollouts came to, prompt by prompt, for paired comparisons
    prompt_results: PromptResults | None = None
    held_out_loss: float | None = None  # nats per token of held-out completions; None without any
    # KL(p_checkpoint || p_base) per token, nats, on its own rollouts
    kl_to_base: float | None = None
    held_out_kl_to_base: float | None = None  # the same on held-out completions
    # A few rollouts, the same prompts for every checkpoint
    examples: tuple[ExampleRollout, ...] = ()
    # Rollouts that are degenerate text of a kind that is no answer and did not pass, mean over
    # prompts
    junk_fraction: float | None = None
    # Kind -> share of rollouts, of the kinds that there are
    degenerate_text: dict[str, float] = field(default_factory=dict)
    degenerate_examples: tuple[DegenerateExample, ...] = ()  # a few of them
    sequential: SequentialRecord | None = None  # what until_decided did; None without
    samples_saved: int = 0  # rollouts that it did not have to draw
    flagged: bool = False  # whether the verdict is at risk, collapsed or junk
    reasons: tuple[str, ...] = ()  # why the verdict is what it is
    notes: tuple[str, ...] = ()  # what else to know
    runtime_s: float = 0.0  # seconds for loading, generating and scoring

    @property
    def has_reward(self) -> bool:
        """Whether rollouts were scored."""
        return self.pass_at_1 is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without a reward the keys that need one are absent."""
        document: dict[str, Any] = plain(asdict(self))
        if not self.has_reward:
            for key in _NEEDS_REWARD:
                del document[key]
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "CheckpointScreening":
        """Undo :meth:`to_dict`; keys that this version does not know are left out."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in document.items() if key in known}
        restored: CheckpointScreening = restore(cls, values)
        return restored


_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Peak:
    """The highest value of one measure over one run, with the step it was reached at.

    RL is judged by its best checkpoint as much as by its last: the rank-inversion paper reports the
    peak of pass@10 over GRPO (arXiv 2606.18487). Checkpoints ``checkpoint-STEP`` of one folder are
    one run; others have no step and no peak. The largest of several noisy numbers lies above its
    true value on average; the interval is that of the checkpoint by itself.
    """

    run: str  # folder of the run
    measure: str  # pass_at_1, pass_at_8, ..
    value: float  # the highest; the earliest checkpoint wins a tie
    step: int  # optimizer step of that checkpoint
    checkpoint: str  # its name in the report
    low: float | None  # lower end of its 95 % interval; None if it has none
    high: float | None  # upper end
    last_value: float  # the measure at the run's last checkpoint
    last_step: int  # its step
    num_checkpoints: int  # over how many the peak was taken


def find_peaks(checkpoints: Sequence[CheckpointScreening]) -> tuple[Peak, ...]:
    """Peaks of pass@k for every k, of every run of two scored checkpoints or more."""
    runs: dict[str, list[tuple[int, CheckpointScreening]]] = {}
    for checkpoint in checkpoints:
        path = Path(checkpoint.path)
        if (match := _STEP.fullmatch(path.name)) and checkpoint.has_reward:
            runs.setdefault(str(path.parent), []).append((int(match[1]), checkpoint))
    peaks = []
    for run, of_run in runs.items():
        steps = sorted(of_run, key=lambda pair: pair[0])
        if len(steps) < 2:
            continue
        ks = sorted(set.intersection(*(set(c.pass_at_k) for _, c in steps)))
        peaks += [_peak(run, k, steps) for k in ks]
    return tuple(peaks)


def _peak(run: str, k: int, steps: Sequence[tuple[int, CheckpointScreening]]) -> Peak:
    step, best = max(steps, key=lambda pair: (pair[1].pass_at_k[k], -pair[0]))
    last_step, last = steps[-1]
    measure = f"pass_at_{k}"
    low, high = best.intervals.get(measure, (None, None))
    return Peak(
        run=run,
        measure=measure,
        value=best.pass_at_k[k],
        step=step,
        checkpoint=best.name,
        low=low,
        high=high,
        last_value=last.pass_at_k[k],
        last_step=last_step,
        num_checkpoints=len(steps),
    )


@dataclass(frozen=True)
class ScreeningReport:
    """Checkpoints in the order screened, and what they were screened with.

    Attributes:
        checkpoints: one record each.
        settings: everything that determines the numbers (samples, group size, temperature, seed,
            tau_h, prompts, reward, versions), and batch size, dtype and device.
        recommendation: which checkpoint to start RL from.
        calibration: tau_H fitted on outcomes after RL, where they were given.
        comparisons: one checkpoint, the base, with each of the others, prompt by prompt.
        gates: limits that checkpoints had to keep, each on each of them.

    """

    checkpoints: tuple[CheckpointScreening, ...]
    settings: dict[str, Any]
    recommendation: Recommendation | None = None
    calibration: Calibration | None = None
    comparisons: tuple[PairedComparison, ...] = ()
    gates: tuple[GateResult, ...] = ()

    @property
    def flagged(self) -> tuple[CheckpointScreening, ...]:
        """The checkpoints that are at risk, collapsed or junk."""
        return tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.flagged)

    @property
    def peaks(self) -> tuple[Peak, ...]:
        """The highest pass@k of every training run among the checkpoints, with its step."""
        return find_peaks(self.checkpoints)

    @property
    def has_reward(self) -> bool:
        """Whether rollouts were scored."""
        return any(checkpoint.has_reward for checkpoint in self.checkpoints)

    def to_dict(self) -> dict[str, Any]:
        """Return the document for JSON: ``schema``, ``schema_version``, then the fields."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "settings": plain(self.settings),
            "checkpoints": [checkpoint.to_dict() for checkpoint in self.checkpoints],
            "recommendation": _optional(self.recommendation),
            "calibration": _optional(self.calibration),
            "peaks": [plain(asdict(peak)) for peak in self.peaks],
            "comparisons": [plain(asdict(pair)) for pair in self.comparisons],
            "gates": [plain(asdict(gate)) for gate in self.gates],
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "ScreeningReport":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: a document of another schema or of a later version.

        """
        schema = (document.get("schema"), document.get("schema_version"))
        if schema[0] != SCHEMA or schema[1] not in range(1, SCHEMA_VERSION + 1):
            raise ValueError(
                f"expected a document of schema {SCHEMA!r}, version 1 to {SCHEMA_VERSION}; got "
                f"{schema[0]!r}, version {schema[1]!r}"
            )
        return cls(
            tuple(map(CheckpointScreening.from_dict, document["checkpoints"])),
            document["settings"],
            restore(Recommendation | None, document.get("recommendation")),
            restore(Calibration | None, document.get("calibration")),
            restore(tuple[PairedComparison, ...], document.get("comparisons", [])),
            restore(tuple[GateResult, ...], document.get("gates", [])),
        )

    def write_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as strict JSON (no NaN); missing parent directories are made."""
        save_json(Path(path), self.to_dict())
        return Path(path)


def _optional(record: Any) -> Any:
    return None if record is None else plain(asdict(record))
