"""Paired comparisons by hand, and against a bootstrap written out with numpy."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from entropyfloor.screening.conclude import compare_screenings, conclude, name_of
from entropyfloor.screening.paired import PromptResults, compare_paired, ranges
from entropyfloor.screening.paired_page import band_figure, write_paired_page, write_paired_plot
from entropyfloor.screening.paired_table import paired_markdown
from entropyfloor.stats.intervals import (
    RESAMPLES,
    Ratio,
    difference_interval,
    share_difference_interval,
    simultaneous_band,
)
from sample_reports import report

N = 4


def results(passed, entropies=None, prompts=None, samples=N):
    count = len(passed)
    return PromptResults(
        prompt_indices=tuple(prompts or range(count)),
        num_samples=(samples,) * count,
        num_tokens=(10,) * count,
        entropy_sums=tuple(entropies or [5.0] * count),
        num_passed=tuple(passed),
    )


def compared(first, second, **more):
    return compare_paired(("a", first), ("b", second), **{"group_size": 2, "ks": [1, 2, 4], **more})


def test_by_hand():
    found = compared(
        results([0, 1, 4, 2], [5, 5, 5, 5]),
        results([2, 0, 4, 0], [2, 3, 4, 7]),
        prompt_texts=["p0", "p1", "p2", "p3"],
    )
    by_name = {d.metric: d for d in found.differences}
    assert list(by_name) == [
        *("entropy_nats", "pass_at_1", "pass_at_2", "pass_at_4", "degenerate_fraction")
    ]
    assert by_name["entropy_nats"].difference == pytest.approx(16 / 40 - 20 / 40)
    assert by_name["pass_at_1"].difference == pytest.approx((6 - 7) / 16)
    # c = 0, 1, 2, 4 of 4 give pass@2 = 0, 1/2, 5/6, 1.
    assert by_name["pass_at_2"].first == pytest.approx((0 + 1 / 2 + 1 + 5 / 6) / 4)
    assert by_name["pass_at_2"].second == pytest.approx((5 / 6 + 0 + 1 + 0) / 4)
    # Pairs that agree: all of c = 0 and 4, 3 of 6 for c = 1, 2 of 6 for c = 2.
    assert by_name["degenerate_fraction"].first == pytest.approx((1 + 1 / 2 + 1 + 1 / 3) / 4)
    assert [p.k for p in found.band] == [1, 2, 3, 4]
    for point in found.band:
        assert point.band.low <= point.difference <= point.band.high
    coverage = found.coverage
    assert (coverage.first_solved, coverage.second_solved) == (3, 2)
    assert coverage.kept == pytest.approx(1 / 3) and coverage.new == pytest.approx(1 / 2)
    assert [(s.prompt_index, s.prompt) for s in coverage.lost] == [(1, "p1"), (3, "p3")]
    assert [s.prompt_index for s in coverage.gained] == [0]
    assert "Of the 3 prompts that a solves in 4 samples, b still solves 33%" in found.message
    assert "2 are lost" in found.message and "1 are new" in found.message


def test_lost_by_chance_is_the_mean_over_all_ways_to_deal_the_passes():
    passed = [(1, 0), (0, 2), (3, 1), (4, 4)]
    found = compared(results([a for a, _ in passed]), results([b for _, b in passed])).coverage
    lost = 0.0
    for a, b in passed:
        ways = list(itertools.combinations(range(2 * N), a + b))  # places of the passes
        lost += sum(all(place < N for place in way) for way in ways) / len(ways)
    assert found.lost_by_chance == pytest.approx(lost)
    assert found.gained_by_chance == pytest.approx(lost)


def test_coverage_intervals_are_wilsons():
    found = compared(results([1] * 10), results([1] * 10)).coverage
    assert (found.kept, found.new) == (1.0, 0.0)
    z = stats.norm.ppf(0.975) ** 2
    assert found.kept_interval == pytest.approx((10 / (10 + z), 1.0))
    assert found.new_interval == pytest.approx((0.0, z / (10 + z)))
    none = compared(results([0] * 5), results([1, 0, 0, 0, 0])).coverage
    assert none.kept is None and none.new == 1.0


def reference_band(values, seed):
    """sup-t from its definition, prompt by prompt in fp64."""
    rng = np.random.default_rng(seed)
    n = len(values)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    draws = np.array([np.average(values, axis=0, weights=w) for w in weights])
    mean, spread = values.mean(axis=0), draws.std(axis=0)
    largest = np.abs((draws - mean) / spread).max(axis=1)
    t = stats.t.ppf(0.975, n - 1)
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(n / (n - 1)) * t)
    c = np.quantile(largest, level)
    return mean - c * spread, mean + c * spread


def test_the_band_is_sup_t():
    rng = np.random.default_rng(3)
    values = np.clip(rng.normal(0.1, 0.2, (30, 5)) + rng.normal(0, 0.1, (30, 1)), -1, 1)
    band = simultaneous_band(values, seed=7)
    low, high = reference_band(values, 7)
    assert [b.low for b in band] == pytest.approx(low)
    assert [b.high for b in band] == pytest.approx(high)
    alone = simultaneous_band(values[:, :1], seed=7)
    assert alone[0].high < band[0].high  # all at once costs width


def test_the_difference_of_ratios_resamples_both_together():
    rng = np.random.default_rng(1)
    a, b = rng.gamma(2, 1, (2, 20)), rng.integers(5, 50, (2, 20)).astype(float)
    found = difference_interval(Ratio(a[0], b[0]), Ratio(a[1], b[1]), seed=5)
    weights = np.random.default_rng(5).multinomial(20, np.full(20, 1 / 20), size=RESAMPLES)
    draws = [(w @ a[1]) / (w @ b[1]) - (w @ a[0]) / (w @ b[0]) for w in weights]
    t = stats.t.ppf(0.975, 19)
    tail = stats.norm.cdf(-np.sqrt(20 / 19) * t)
    assert found == pytest.approx(np.quantile(draws, [tail, 1 - tail]))
    same = Ratio(a[0], b[0])
    assert difference_interval(same, same) == (0.0, 0.0)
    assert difference_interval(Ratio([1.0], [2.0]), Ratio([1.0], [3.0])) is None
    with pytest.raises(ValueError, match="same prompts"):
        difference_interval(Ratio([1.0, 2.0], [1.0, 1.0]), Ratio([1.0], [1.0]))


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 0.25])
def test_no_spread_is_not_certainty(x):
    found = share_difference_interval([x] * 24)
    reach = (1 + abs(x)) * (1 - 0.025 ** (1 / 24))
    assert found == pytest.approx((max(-1, x - reach), min(1, x + reach)))
    band = simultaneous_band(np.column_stack([np.full(24, x), np.linspace(-1, 1, 24)]))
    wider = (1 + abs(x)) * (1 - 0.0125 ** (1 / 24))
    assert band[0] == pytest.approx((max(-1, x - wider), min(1, x + wider)))
    assert band[1].low < 0 < band[1].high


def test_who_is_ahead_is_said():
    weak, strong = results([0] * 20 + [4] * 20), results([1] * 20 + [4] * 20)
    found = compared(weak, strong)
    assert found.first_ahead == () and found.second_ahead == (1, 2, 3, 4)
    assert "b is ahead in pass@k at k = 1–4, the most at 4 by 0.500" in found.message
    assert "holds for all k at once" in found.message
    turned = compared(strong, weak)
    assert turned.first_ahead == (1, 2, 3, 4) and turned.second_ahead == ()
    even = compared(weak, weak)
    assert "neither is ahead for certain at any k from 1 to 4" in even.message
    assert ranges([1, 2, 3, 8, 10, 11]) == "1–3, 8, 10–11"


def test_only_prompts_of_both_count():
    found = compared(
        results([1, None, 3], prompts=[0, 2, 5]), results([2, 2, 2, 2], prompts=[1, 2, 5, 7])
    )
    assert (found.num_prompts, found.num_scored_prompts) == (2, 1)
    assert found.band[0].difference == pytest.approx((2 - 3) / 4)
    unscored = compared(results([None, None]), results([None, None]))
    assert [d.metric for d in unscored.differences] == ["entropy_nats"]
    assert unscored.band == () and unscored.coverage is None
    with pytest.raises(ValueError, match="no prompt in common"):
        compared(results([1], prompts=[3]), results([1], prompts=[4]))


def test_screenings_that_cannot_be_compared_are_refused():
    one, other = report(2), report(3)
    rows = one.checkpoints[0], other.checkpoints[2]
    found = compare_screenings((one, rows[0]), (other, rows[1]))
    assert found.notes == ()
    hot = replace(other, settings={**other.settings, "temperature": 0.7})
    (note,) = compare_screenings((one, rows[0]), (hot, rows[1])).notes
    assert "temperature is 1.0 for ce/checkpoint-100 and 0.7" in note
    for change, words in (
        ({"prompts": {"source": "x", "count": 3, "digest": "other"}}, "not the same prompts"),
        ({"reward": "math"}, "reward is exact_match for"),
        ({"success_threshold": 0.5}, "success_threshold is 1.0 for"),
    ):
        changed = replace(other, settings={**other.settings, **change})
        with pytest.raises(ValueError, match=words):
            compare_screenings((one, rows[0]), (changed, rows[1]))


def test_a_report_compares_with_the_checkpoint_that_is_named():
    found = report(3)
    again = conclude(found.checkpoints, found.settings, compare_to="ce/checkpoint-200")
    assert [(p.first, p.second) for p in again.comparisons] == [
        ("ce/checkpoint-200", "ce/checkpoint-100"),
        ("ce/checkpoint-200", "ce/checkpoint-300"),
    ]
    results = found.checkpoints[1].prompt_results
    elsewhere = replace(results, prompt_indices=tuple(range(100, 124)))
    killed = [found.checkpoints[0], replace(found.checkpoints[1], prompt_results=elsewhere)]
    assert conclude(killed, found.settings, compare_to=killed[0].name).comparisons == ()
    names = [(c.name, c.path) for c in found.checkpoints]
    path = "runs/sft/ce/checkpoint-100"
    assert name_of(None, names) == name_of(path, names) == name_of(Path(path), names) == names[0][0]
    with pytest.raises(ValueError, match="no checkpoint 'x' is screened; there are ce/checkpoint"):
        name_of("x", names)


def test_files(tmp_path):
    pairs = report(3).comparisons
    text = paired_markdown(pairs)
    assert text.count("| metric |") == 2 and "### Lost: " in text
    assert write_paired_plot(pairs[0], tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    page = write_paired_page(pairs, report(3).settings, tmp_path / "x.html").read_text("utf-8")
    assert page.count('class="chart"') == 2 and "an unchanged checkpoint would lose" in page
    with pytest.raises(ValueError, match="no band to plot"):
        write_paired_plot(report(2, scored=False).comparisons[0], tmp_path / "y.png")
    assert band_figure(compared(results([1]), results([2]))) is None
    assert compared(results([1]), results([2])).differences[1].interval is None
