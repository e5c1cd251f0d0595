"""From measured checkpoints to a report: what they say together, beside each one's own numbers."""

from collections.abc import Sequence
from typing import Any

from entropyfloor.screening.gates import judge_gates
from entropyfloor.screening.options import Gate
from entropyfloor.screening.paired import PairedComparison, compare_paired
from entropyfloor.screening.recommend import recommend
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

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


def name_of(wanted: str | None, names: Sequence[tuple[str, str]]) -> str:
    """The name of the checkpoint that is wanted by its name or path; the first for None.

    Args:
        wanted: a name, or what was given to load it.
        names: of every checkpoint, each with its path.

    Raises:
        ValueError: there is none; the message lists the names.

    """
    matching = [name for name, path in names if wanted in (None, name, path)]
    if not matching:
        raise ValueError(
            f"no checkpoint {wanted!r} is screened; there are {', '.join(n for n, _ in names)}"
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
