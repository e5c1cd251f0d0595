"""Whether a measure orders checkpoints as their outcome after RL does."""

from collections.abc import Sequence

from scipy import stats


def spearman(measure: Sequence[float], outcome: Sequence[float]) -> float:
    """Spearman rank correlation in [-1, 1]; ties share their mean rank.

    Raises:
        ValueError: different lengths, fewer than three pairs, or a side that does not vary.

    """
    if len(measure) != len(outcome):
        raise ValueError(
            f"one outcome per checkpoint is needed; got {len(measure)} measures and "
            f"{len(outcome)} outcomes"
        )
    if len(measure) < 3:
        raise ValueError(f"a rank correlation needs at least three checkpoints; got {len(measure)}")
    if len(set(measure)) < 2 or len(set(outcome)) < 2:
        raise ValueError("a rank correlation needs measures and outcomes that vary")
    return float(stats.spearmanr(measure, outcome).statistic)
