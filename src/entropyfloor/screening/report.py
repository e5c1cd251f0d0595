"""What a screening found, as data: a record per checkpoint, and the settings behind them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropyfloor.measures.intervals import Interval

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "entropyfloor.screening"
SCHEMA_VERSION = 1

_NEEDS_REWARD = (
    "pass_at_1",
    "pass_at_k",
    "degenerate_fraction",
    "degenerate_all_wrong",
    "degenerate_all_right",
    "within_group_variance",
    "p_hat_over_p_star",
    "mean_reward",
    "num_scored_prompts",
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
        within_group_variance: p(1-p)(g-1)/g, unbiased, mean over prompts; None for one sample per
            prompt.
        p_hat_over_p_star: ``pass_at_1 / p*(group_size)``.
        mean_reward: mean of the reward itself.
        intervals: 95 % interval by measure name (``pass_at_8`` for k = 8), where there is one.
        flagged: the verdict.
        reasons: why it is flagged.
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
        plain = asdict(self)
        plain["pass_at_k"] = {str(k): value for k, value in self.pass_at_k.items()}
        plain["intervals"] = {name: list(interval) for name, interval in self.intervals.items()}
        plain["reasons"], plain["notes"] = list(self.reasons), list(self.notes)
        if not self.has_reward:
            for key in _NEEDS_REWARD:
                del plain[key]
        return plain


@dataclass(frozen=True)
class ScreeningReport:
    """Checkpoints in the order screened, and what they were screened with.

    Attributes:
        checkpoints: one record each.
        settings: everything that determines the numbers (samples, group size, temperature, seed,
            tau_h, prompts, reward, versions), and batch size, dtype and device.

    """

    checkpoints: tuple[CheckpointScreening, ...]
    settings: dict[str, Any]

    @property
    def flagged(self) -> tuple[CheckpointScreening, ...]:
        """The checkpoints below tau_H."""
        return tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.flagged)

    @property
    def has_reward(self) -> bool:
        """Whether rollouts were scored."""
        return any(checkpoint.has_reward for checkpoint in self.checkpoints)

    def to_dict(self) -> dict[str, Any]:
        """Return the document: ``schema``, ``schema_version``, ``settings``, ``checkpoints``."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "settings": dict(self.settings),
            "checkpoints": [checkpoint.to_dict() for checkpoint in self.checkpoints],
        }

    def write_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as strict JSON (no NaN); missing parent directories are made."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
        return target

    def to_markdown(self) -> str:
        """Write the table and the reasons as GitHub-flavoured Markdown."""
        from entropyfloor.reports.screening_table import screening_markdown

        return screening_markdown(self)

    def table(self) -> "Table":
        """Build the table for a terminal."""
        from entropyfloor.reports.screening_table import screening_table

        return screening_table(self)
