"""The peak over a run's checkpoints: value, step, interval, and runs kept apart."""

import pytest

from entropyfloor.screening.report import ScreeningReport, find_peaks
from entropyfloor.screening.table import peak_words
from entropyfloor.stats.intervals import Interval
from sample_reports import bare_checkpoint


def checkpoint(path, pass_at_1=None, pass_at_8=None):
    scored = {}
    if pass_at_1 is not None:
        scored = {"pass_at_1": pass_at_1, "pass_at_k": {1: pass_at_1, 8: pass_at_8}}
    return bare_checkpoint(path, intervals={"pass_at_8": Interval(0.1, 0.9)}, **scored)


RUN = [
    checkpoint("start", 0.9, 0.99),
    checkpoint("a/checkpoint-100", 0.2, 0.7),
    checkpoint("a/checkpoint-50", 0.1, 0.8),
    checkpoint("a/checkpoint-150", 0.2, 0.6),
    checkpoint("b/checkpoint-50", 0.3, 0.4),
    checkpoint("b/checkpoint-100", 0.2, 0.5),
    checkpoint("c/checkpoint-7", 1.0, 1.0),
]


def test_peaks_with_their_steps():
    found = {(peak.run, peak.measure): peak for peak in find_peaks(RUN)}
    assert set(found) == {(run, m) for run in "ab" for m in ("pass_at_1", "pass_at_8")}
    first, eighth = found["a", "pass_at_1"], found["a", "pass_at_8"]
    # A tie goes to the earlier step, whatever order they were given in; the start has no step.
    assert (first.value, first.step, first.checkpoint) == (0.2, 100, "a/checkpoint-100")
    assert (first.low, first.high) == (None, None)
    assert (eighth.value, eighth.step, eighth.low, eighth.high) == (0.8, 50, 0.1, 0.9)
    assert (eighth.last_value, eighth.last_step, eighth.num_checkpoints) == (0.6, 150, 3)
    assert found["b", "pass_at_1"].step == 50


def test_words():
    assert peak_words(find_peaks(RUN[:4])) == [
        "Peak of a over 3 checkpoints up to step 150: pass@1 0.200 at step 100 (0.200 at the "
        "last), pass@8 0.800 at step 50 (0.600 at the last)"
    ]


@pytest.mark.parametrize(
    "checkpoints", [[], RUN[:1], [RUN[6]], [checkpoint(f"a/checkpoint-{i}") for i in (1, 2)]]
)
def test_no_run_or_no_reward_has_no_peak(checkpoints):
    assert find_peaks(checkpoints) == ()
    assert peak_words(()) == []


def test_in_the_report():
    report = ScreeningReport(tuple(RUN), {})
    document = report.to_dict()["peaks"]
    assert [(p["run"], p["measure"], p["step"]) for p in document] == [
        ("a", "pass_at_1", 100),
        ("a", "pass_at_8", 50),
        ("b", "pass_at_1", 50),
        ("b", "pass_at_8", 100),
    ]
