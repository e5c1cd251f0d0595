"""Limits that checkpoints must keep, for CI and schedulers: each says which, by how much.

    --min_pass_at 16:0.6     pass@16 at least 0.6
    --min_coverage 0.9       share kept of the prompts that the base solves at least 0.9
    --max_degenerate 0.5     share of degenerate groups at most 0.5

A gate is decided by the number itself, so that its answer is yes or no; whether the number's 95 %
interval contains the limit is said beside it (``certain``). Every checkpoint must pass; the base
has no coverage of its own. Where the base solves nothing there is nothing to lose, and that gate
passes.
"""

from collections.abc import Sequence

from entropyfloor.rollouts.preparation import check_samples
from entropyfloor.screening.options import Gate, Judging
from entropyfloor.screening.paired import PairedComparison
from entropyfloor.screening.records import GateResult
from entropyfloor.screening.report import CheckpointScreening
from entropyfloor.stats.intervals import Interval


def measured_ks(num_samples: int, judging: Judging, *, scored: bool) -> tuple[int, ...]:
    """The k at which pass@k is measured: those to report, and those of gates.

    Raises:
        ValueError: a k that the samples cannot show, or a gate that needs a reward.

    """
    if judging.gates and not scored:
        names = " and ".join(f"--{gate.flag}" for gate in judging.gates)
        raise ValueError(f"{names}: pass rates need a reward; give --reward, or leave it out")
    size = judging.group_size
    ks = check_samples(num_samples, size, judging.ks, scored=scored)
    gated = [gate.k for gate in judging.gates if gate.k is not None]
    return check_samples(num_samples, size, [*ks, *gated], scored=scored) if gated else ks


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
