"""Two checkpoints on the same prompts: what they differ by, which prompts one of them lost.

    difference   second - first, with an interval that resamples the prompts of both together
    band         of pass@k for every k up to the samples of both, at once (``stats/intervals.py``)
    coverage     of the prompts that the first solves in n samples, the share that the second still
                 solves; and of those that the second solves, the share that the first did not

A prompt counts as solved when one of its n rollouts passes, so a rate of 0.05 is solved now and
lost then by chance alone. ``lost_by_chance`` says how often: were the ``c`` passes of both spread
at random over the rollouts of both, all of them would be the first's with probability
``C(n1, c) / C(n1 + n2, c)``; the sum over prompts is what an unchanged model loses on average.
Intervals of coverage are Wilson's: prompts are the trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import comb

import numpy as np
from scipy import stats

from entropyfloor.stats.groups import estimate_degenerate_fraction, pass_at_k
from entropyfloor.stats.intervals import (
    CONFIDENCE,
    Interval,
    Ratio,
    difference_interval,
    share_difference_interval,
    simultaneous_band,
)


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
class Difference:
    """One metric of both."""

    metric: str  # entropy_nats, pass_at_1, pass_at_8, ..., degenerate_fraction
    first: float  # the first checkpoint's, over the prompts of both
    second: float  # the second's
    difference: float  # second - first
    interval: Interval | None  # 95 %, of the difference; None for fewer than two prompts


@dataclass(frozen=True)
class BandPoint:
    """pass@k of both at one k, and the band of all k there."""

    k: int
    first: float
    second: float
    difference: float
    band: Interval | None


@dataclass(frozen=True)
class SolvedByOne:
    """A prompt that one of the two solves: its row, its text and the rollouts that passed."""

    prompt_index: int
    prompt: str
    first_passed: int
    second_passed: int


@dataclass(frozen=True)
class Coverage:
    """What was kept of what the first checkpoint solves."""

    # Rollouts per prompt in which a prompt is solved, of the first and the second
    num_samples: tuple[int, int]
    first_solved: int  # prompts
    second_solved: int  # prompts
    # Share of the first's solved prompts that the second solves; None if it solves none
    kept: float | None
    kept_interval: Interval | None  # 95 %
    new: float | None  # share of the second's solved prompts that the first does not solve
    new_interval: Interval | None  # 95 %
    lost: tuple[SolvedByOne, ...]  # prompts that the first solves and the second does not
    gained: tuple[SolvedByOne, ...]  # the other way
    lost_by_chance: float  # prompts that an unchanged checkpoint would lose on average
    gained_by_chance: float  # the other way


@dataclass(frozen=True)
class PairedComparison:
    """Two checkpoints on the same prompts."""

    first: str  # name of the one that is compared with: the base, or the start of RL
    second: str  # name of the other
    num_prompts: int  # prompts that both have rollouts of
    num_scored_prompts: int  # those of them that the reward applies to, for both
    differences: tuple[Difference, ...]  # one per metric
    band: tuple[BandPoint, ...]  # pass@k for k = 1, 2, ...; empty without a reward
    # The k at which the band says that the first has the higher pass@k
    first_ahead: tuple[int, ...]
    second_ahead: tuple[int, ...]  # the k at which it is the second
    coverage: Coverage | None  # None without a reward
    notes: tuple[str, ...]  # what was not alike beside the checkpoints
    message: str  # what it says, in sentences


def compare_paired(
    first: tuple[str, PromptResults],  # the first checkpoint's, over the prompts of both
    second: tuple[str, PromptResults],  # the second's
    *,
    group_size: int,
    ks: Sequence[int] = (),
    prompt_texts: Sequence[str] = (),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> PairedComparison:
    """Compare two checkpoints prompt by prompt.

    Args:
        first: name, and what its rollouts came to.
        second: the same of the other, on the same prompt set.
        group_size: of RL; the degenerate fraction needs as many samples of both.
        ks: pass@k whose differences are reported one by one; those that both have samples for.
        prompt_texts: of the whole set, for the lists of prompts.
        notes: what the comparison should say besides.
        seed: of the bootstrap.

    Raises:
        ValueError: they have no prompt in common.

    """
    shared = sorted(set(first[1].prompt_indices) & set(second[1].prompt_indices))
    if not shared:
        raise ValueError(
            f"{first[0]} and {second[0]} have no prompt in common: screen both on the same prompts"
        )
    sides = [_of_prompts(results, shared) for _, results in (first, second)]
    scored, counts = _scored(*sides)
    band: tuple[BandPoint, ...] = ()
    coverage = None
    if scored:
        band = _band(_pass_at_every_k(counts, _most(counts)), seed)
        texts = {i: prompt_texts[i] if i < len(prompt_texts) else "" for i in scored}
        coverage = _coverage(texts, counts)
    ahead = [
        tuple(p.k for p in band if p.band is not None and sign * p.band[end] > 0)
        for sign, end in ((-1, 1), (1, 0))
    ]
    pair = PairedComparison(
        first=first[0],
        second=second[0],
        num_prompts=len(shared),
        num_scored_prompts=len(scored),
        differences=metric_differences(*sides, group_size=group_size, ks=ks, seed=seed),
        band=band,
        first_ahead=ahead[0],
        second_ahead=ahead[1],
        coverage=coverage,
        notes=tuple(notes),
        message="",
    )
    return replace(pair, message=_message(pair))


def metric_differences(
    first: PromptResults,
    second: PromptResults,
    *,
    group_size: int,
    ks: Sequence[int] = (),
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Entropy, pass@1, pass@k and the degenerate fraction of two, on the same prompts in order.

    Args:
        first: what one checkpoint's rollouts came to.
        second: what the other's came to.
        group_size: of RL; the degenerate fraction needs as many samples of both.
        ks: pass@k to compare beside pass@1; those that both have samples for.
        seed: of the bootstrap.

    """
    before, after = (Ratio(side.entropy_sums, side.num_tokens) for side in (first, second))
    interval = difference_interval(before, after, seed=seed)
    differences = [_difference("entropy_nats", before.value, after.value, interval)]
    scored, counts = _scored(first, second)
    if scored:
        most = _most(counts)
        curves = _pass_at_every_k(counts, most)
        for k in sorted({1, *(k for k in ks if k <= most)}):
            differences.append(_of_shares(f"pass_at_{k}", *curves[:, :, k - 1], seed=seed))
        if most >= group_size:
            shares = [
                np.array([estimate_degenerate_fraction(n, c, group_size).total for n, c in side])
                for side in counts
            ]
            differences.append(_of_shares("degenerate_fraction", *shares, seed=seed))
    return tuple(differences)


def _scored(
    first: PromptResults, second: PromptResults
) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Prompts that the reward applies to, for both, and (rollouts, passed) of either on them."""
    passed = zip(first.prompt_indices, first.num_passed, second.num_passed, strict=True)
    scored = [prompt for prompt, *counts in passed if None not in counts]
    return scored, [_counts(side, scored) for side in (first, second)]


def _most(counts: Sequence[Sequence[tuple[int, int]]]) -> int:
    """Rollouts that every prompt has, of both."""
    return min(n for side in counts for n, _ in side)


def _of_prompts(results: PromptResults, prompts: Sequence[int]) -> PromptResults:
    """The same without other prompts."""
    place = {prompt: i for i, prompt in enumerate(results.prompt_indices)}
    kept = [place[prompt] for prompt in prompts]
    columns = {f.name: tuple(getattr(results, f.name)[i] for i in kept) for f in fields(results)}
    return PromptResults(**columns)


def _counts(results: PromptResults, prompts: Sequence[int]) -> list[tuple[int, int]]:
    """(rollouts, passed) of prompts that the reward applies to."""
    kept = _of_prompts(results, prompts)
    return [(n, c or 0) for n, c in zip(kept.num_samples, kept.num_passed, strict=True)]


def _difference(metric: str, first: float, second: float, interval: Interval | None) -> Difference:
    return Difference(metric, first, second, second - first, interval)


def _of_shares(metric: str, first: np.ndarray, second: np.ndarray, *, seed: int) -> Difference:
    interval = share_difference_interval((second - first).tolist(), seed=seed)
    return _difference(metric, float(first.mean()), float(second.mean()), interval)


def _pass_at_every_k(counts: Sequence[Sequence[tuple[int, int]]], most: int) -> np.ndarray:
    """fp64 ``[2, prompts, most]``."""
    known = {
        (n, c): [pass_at_k(n, c, k) for k in range(1, most + 1)] for side in counts for n, c in side
    }
    return np.array([[known[pair] for pair in side] for side in counts])


def _band(curves: np.ndarray, seed: int) -> tuple[BandPoint, ...]:
    first, second = curves
    band = simultaneous_band(second - first, seed=seed)
    means = zip(first.mean(axis=0).tolist(), second.mean(axis=0).tolist(), strict=True)
    return tuple(
        BandPoint(k, before, after, after - before, None if band is None else band[k - 1])
        for k, (before, after) in enumerate(means, start=1)
    )


def _coverage(texts: Mapping[int, str], counts: Sequence[Sequence[tuple[int, int]]]) -> Coverage:
    rows = [
        (SolvedByOne(index, text, c1, c2), n1, n2)
        for (index, text), (n1, c1), (n2, c2) in zip(texts.items(), *counts, strict=True)
    ]
    solved = [
        sum(row.first_passed > 0 for row, *_ in rows),
        sum(row.second_passed > 0 for row, *_ in rows),
    ]
    both = sum(row.first_passed > 0 and row.second_passed > 0 for row, *_ in rows)
    passed = [(row.first_passed + row.second_passed, n1, n2) for row, n1, n2 in rows]
    return Coverage(
        num_samples=(min(n1 for _, n1, _ in rows), min(n2 for *_, n2 in rows)),
        first_solved=solved[0],
        second_solved=solved[1],
        kept=both / solved[0] if solved[0] else None,
        kept_interval=_wilson(both, solved[0]),
        new=1.0 - both / solved[1] if solved[1] else None,
        new_interval=_wilson(solved[1] - both, solved[1]),
        lost=tuple(row for row, *_ in rows if row.first_passed and not row.second_passed),
        gained=tuple(row for row, *_ in rows if row.second_passed and not row.first_passed),
        lost_by_chance=sum(comb(n1, c) / comb(n1 + n2, c) for c, n1, n2 in passed if c),
        gained_by_chance=sum(comb(n2, c) / comb(n1 + n2, c) for c, n1, n2 in passed if c),
    )


def _message(pair: PairedComparison) -> str:
    sentences = [_entropy_words(pair.differences[0])]
    if pair.band:
        sentences.append(_band_words(pair))
    if pair.coverage is not None:
        sentences.append(_coverage_words(pair, pair.coverage))
    return " ".join(sentences)


def _entropy_words(entropy: Difference) -> str:
    ends = f"{entropy.first:.3f} to {entropy.second:.3f} nats"
    if entropy.interval is None:
        return f"Entropy goes from {ends}; one prompt says nothing of how sure that is."
    low, high = entropy.interval
    if low <= 0.0 <= high:
        return f"Entropy goes from {ends}, which may be chance ({low:+.3f} to {high:+.3f})."
    way = "rises" if entropy.difference > 0 else "falls"
    return f"Entropy {way} from {ends} ({low:+.3f} to {high:+.3f})."


def _band_words(pair: PairedComparison) -> str:
    at = {point.k: point for point in pair.band}
    parts = []
    for name, ks in ((pair.first, pair.first_ahead), (pair.second, pair.second_ahead)):
        if ks:
            most = max((at[k] for k in ks), key=lambda point: abs(point.difference))
            assert most.band is not None
            low, high = sorted(abs(end) for end in most.band)
            parts.append(
                f"{name} is ahead in pass@k at k = {ranges(ks)}, the most at {most.k} by "
                f"{abs(most.difference):.3f} ({low:.3f} to {high:.3f})"
            )
    last = pair.band[-1].k
    if not parts:
        return f"In pass@k neither is ahead for certain at any k from 1 to {last}."
    rest = last - len(pair.first_ahead) - len(pair.second_ahead)
    end = "; at the other k neither is for certain" if rest else ""
    return f"{'; '.join(parts)}{end} (a band that holds for all k at once, 95 %)."


def _coverage_words(pair: PairedComparison, coverage: Coverage) -> str:
    if coverage.kept is None or coverage.kept_interval is None:
        return f"{pair.first} solves no prompt, so there is none to lose."
    low, high = coverage.kept_interval
    new = "" if coverage.new is None else f"; {len(coverage.gained)} are new"
    return (
        f"Of the {coverage.first_solved} prompts that {pair.first} solves in "
        f"{coverage.num_samples[0]} samples, {pair.second} still solves {coverage.kept:.0%} "
        f"({low:.0%} to {high:.0%}): {len(coverage.lost)} are lost, where an unchanged checkpoint "
        f"loses {coverage.lost_by_chance:.1f} on average{new}."
    )


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in words: ``1–3, 8``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _wilson(count: int, trials: int) -> Interval | None:
    if trials == 0:
        return None
    wilson = stats.binomtest(count, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(wilson.low), float(wilson.high))
