"""What a screening found, as data: a record per checkpoint, and the settings behind them."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from entropyfloor.io import save_json
from entropyfloor.screening.paired import PairedComparison
from entropyfloor.screening.peak import Peak, find_peaks
from entropyfloor.screening.records import (
    Calibration,
    DegenerateExample,
    ExampleRollout,
    GateResult,
    Histogram,
    PromptResults,
    Recommendation,
    plain,
    restore,
)
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.intervals import Interval

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
    """The measures of one checkpoint. Without a reward, those that need one are None (or empty).

    Attributes:
        name: short name, unique in the report.
        path: what was loaded.
        num_prompts: prompts in the set.
        num_rollouts: rollouts over all prompts.
        entropy_nats: token-weighted mean Shannon entropy of the next-token distribution at
            temperature 1, over all generated tokens, the end-of-sequence token included.
        unique_fraction: distinct completions of a prompt over its rollouts, mean over prompts.
        mean_tokens: generated tokens per rollout, the end-of-sequence token included.
        truncated_fraction: rollouts that hit the length limit.
        num_scored_prompts: prompts that the reward applies to.
        pass_at_1: mean pass rate.
        pass_at_k: k -> unbiased pass@k, mean over prompts.
        degenerate_fraction: groups whose rewards all agree, unbiased, mean over prompts.
        degenerate_all_wrong: the part of it where all are wrong.
        degenerate_all_right: the part of it where all are right.
        outcome_degenerate_fraction: the part of it where rewards differ all the same, because they
            are shaped: an advantage that says nothing about passing.
        within_group_variance: p(1-p)(g-1)/g, unbiased, mean over prompts; None for one sample per
            prompt.
        p_hat_over_p_star: ``pass_at_1 / p*(group_size)``.
        mean_reward: mean of the reward itself.
        verdict: ``ready``, ``at risk``, ``collapsed``, ``junk`` or ``undecided``.
        entropy_sequence_mean: mean entropy of a rollout's tokens, mean over rollouts, nats.
        entropy_sequence_p10: the tenth percentile of that over rollouts, nats.
        entropy_sequence_p25: the lower quartile.
        temperature: what the rollouts were drawn at.
        entropy_temperature: what every entropy here is at.
        self_bleu: similarity of a prompt's rollouts to each other, in [0, 1], mean over prompts;
            None for one sample per prompt.
        repetition: share of a rollout's token 4-grams that it already had, mean over rollouts.
        greedy_pass_at_1: pass rate of one greedy rollout per prompt; None if none was drawn.
        degenerate_predicted: ``p^g + (1-p)^g`` at the *mean* pass rate, as ``p_hat_over_p_star``
            presumes; ``degenerate_fraction`` above it is the spread between prompts.
        degenerate_predicted_all_wrong: its part ``(1-p)^g``.
        degenerate_predicted_all_right: its part ``p^g``.
        per_prompt_pass_rates: one per scored prompt, in order.
        token_entropy_histogram: of all generated tokens, nats.
        prompt_results: what its rollouts came to, prompt by prompt, for paired comparisons.
        held_out_loss: nats per token of held-out completions; None without any.
        kl_to_base: ``KL(p_checkpoint || p_base)`` per token, nats, on its own rollouts.
        held_out_kl_to_base: the same on held-out completions.
        examples: a few rollouts, the same prompts for every checkpoint.
        sequential: what ``until_decided`` did; None without.
        samples_saved: rollouts that it did not have to draw.
        intervals: 95 % interval by measure name (``pass_at_8`` for k = 8), where there is one.
        junk_fraction: rollouts that are degenerate text of a kind that is no answer and did not
            pass, mean over prompts.
        degenerate_text: kind -> share of rollouts, of the kinds that there are.
        degenerate_examples: a few of them.
        flagged: whether the verdict is ``at risk``, ``collapsed`` or ``junk``.
        reasons: why the verdict is what it is.
        notes: what else to know.
        runtime_s: seconds for loading, generating and scoring.

    """

    name: str
    path: str
    num_prompts: int
    num_rollouts: int
    entropy_nats: float
    unique_fraction: float
    mean_tokens: float
    truncated_fraction: float
    num_scored_prompts: int | None = None
    pass_at_1: float | None = None
    pass_at_k: dict[int, float] = field(default_factory=dict)
    degenerate_fraction: float | None = None
    degenerate_all_wrong: float | None = None
    degenerate_all_right: float | None = None
    within_group_variance: float | None = None
    p_hat_over_p_star: float | None = None
    mean_reward: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    verdict: str = "undecided"
    entropy_sequence_mean: float | None = None
    entropy_sequence_p10: float | None = None
    entropy_sequence_p25: float | None = None
    temperature: float = 1.0
    entropy_temperature: float = 1.0
    self_bleu: float | None = None
    repetition: float | None = None
    greedy_pass_at_1: float | None = None
    degenerate_predicted: float | None = None
    degenerate_predicted_all_wrong: float | None = None
    degenerate_predicted_all_right: float | None = None
    per_prompt_pass_rates: tuple[float, ...] = ()
    outcome_degenerate_fraction: float | None = None
    token_entropy_histogram: Histogram | None = None
    prompt_results: PromptResults | None = None
    held_out_loss: float | None = None
    kl_to_base: float | None = None
    held_out_kl_to_base: float | None = None
    examples: tuple[ExampleRollout, ...] = ()
    junk_fraction: float | None = None
    degenerate_text: dict[str, float] = field(default_factory=dict)
    degenerate_examples: tuple[DegenerateExample, ...] = ()
    sequential: SequentialRecord | None = None
    samples_saved: int = 0
    flagged: bool = False
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runtime_s: float = 0.0

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
