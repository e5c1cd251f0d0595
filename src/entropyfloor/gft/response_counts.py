"""A prompt's response group without duplicates, and counts of what was kept and what passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.gft.responses import DATASET_SOURCES, Response
from entropyfloor.stats.groups import Sums


@dataclass(frozen=True)
class SourceCounts(Sums):
    """Responses of one source."""

    responses: int = 0  # how many there were
    duplicates: int = 0  # left out, as the prompt's group held the same already
    truncated: int = 0  # left out, as they hit the length limit
    empty: int = 0  # left out, as nothing but white space was in them
    kept: int = 0  # the rest
    kept_passed: int = 0  # of these, how many reached the threshold
    scored: int = 0  # of all responses, how many the reward applied to
    # Of these, how many reached the threshold: the source's own pass rate, which that of what is
    # kept is not, as right answers are more often alike
    passed: int = 0
    reward_sum: float = 0.0  # of the scored

    @property
    def pass_rate(self) -> float | None:
        """Passed of the scored; None if there are none."""
        return self.passed / self.scored if self.scored else None

    @property
    def mean_reward(self) -> float | None:
        """Of the scored; None if there are none."""
        return self.reward_sum / self.scored if self.scored else None


@dataclass(frozen=True)
class ResponseCounts(Sums):
    """Counts by source, and over groups."""

    expert: SourceCounts = SourceCounts()
    teacher: SourceCounts = SourceCounts()
    other: SourceCounts = SourceCounts()
    without_response: int = 0  # groups that nothing is in
    all_passed: int = 0  # groups whose scored responses all pass
    none_passed: int = 0  # groups whose scored responses all fail
    mixed: int = 0  # groups with both

    @property
    def by_source(self) -> dict[str, SourceCounts]:
        """In the order of `DATASET_SOURCES`."""
        return {source: getattr(self, source) for source in DATASET_SOURCES}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        sources = {
            name: {**vars(of), "pass_rate": of.pass_rate, "mean_reward": of.mean_reward}
            for name, of in self.by_source.items()
        }
        groups = {name: value for name, value in vars(self).items() if name not in sources}
        return {"sources": sources, "groups": groups}


def count_responses(
    dataset: Sequence[Response],
    sampled: Sequence[tuple[Response, bool]],
    *,
    keep_truncated: bool,
    threshold: float,
) -> tuple[list[Response], ResponseCounts]:
    """One prompt's group, the first of responses that say the same, and its counts.

    Args:
        dataset: what the data set brings along.
        sampled: the teacher's responses, and whether each hit the length limit.
        keep_truncated: keep those that did.
        threshold: a response passes if its reward is at least this.

    """
    seen: set[str] = set()
    group: list[Response] = []
    by_source = {source: SourceCounts() for source in DATASET_SOURCES}
    for response, truncated in [*((each, False) for each in dataset), *sampled]:
        reward, key = response.reward, response.key
        passed = int(reward is not None and reward >= threshold)
        left_out = truncated and not keep_truncated
        empty = not left_out and not key
        duplicate = not left_out and key in seen
        kept = not (left_out or empty or duplicate)
        if kept:
            seen.add(key)
            group.append(response)
        by_source[response.source] += SourceCounts(
            responses=1,
            duplicates=int(duplicate),
            truncated=int(left_out),
            empty=int(empty),
            kept=int(kept),
            kept_passed=passed * kept,
            scored=int(reward is not None),
            passed=passed,
            reward_sum=reward or 0.0,
        )
    passes = {each.reward >= threshold for each in group if each.reward is not None}
    counts = ResponseCounts(
        **by_source,
        without_response=int(not group),
        all_passed=int(passes == {True}),
        none_passed=int(passes == {False}),
        mixed=int(len(passes) == 2),
    )
    return group, counts
