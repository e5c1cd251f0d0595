"""The measures of a checkpoint that experiments keep and compare, as plain data for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropyfloor.screening.report import CheckpointScreening

# One number (or word) each; pass@k and the intervals come beside them.
MEASURES = (
    "entropy_nats",
    "pass_at_1",
    "degenerate_fraction",
    "degenerate_all_wrong",
    "degenerate_all_right",
    "p_hat_over_p_star",
    "unique_fraction",
    "held_out_loss",
    "truncated_fraction",
    "verdict",
)


def measures(checkpoint: CheckpointScreening) -> dict[str, Any]:
    """`MEASURES` as far as they were measured, ``pass_at_k`` and their 95 % ``intervals``."""
    document = checkpoint.to_dict()
    kept = {key: document[key] for key in (*MEASURES, "intervals") if key in document}
    kept["pass_at_k"] = {str(k): value for k, value in document["pass_at_k"].items()}
    return kept
