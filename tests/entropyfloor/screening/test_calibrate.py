import pytest

from entropyfloor.screening.calibrate import calibrate, fit_threshold, read_outcomes
from entropyfloor.screening.report import ScreeningReport
from sample_reports import bare_checkpoint

PAPER = """checkpoint,score,entropy_nats,pass_at_1
1.0,0.806,0.227,0.151
1.9,0.750,0.163,0.163
2.9,0.671,0.156,0.159
3.8,0.608,0.171,0.173
5.8,0.481,0.120,0.187
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "outcomes.csv"
        path.write_text(text, encoding="latin-1" if "ä" in text else "utf-8")
        return path

    return write


def test_the_papers_echelon(write):
    found = calibrate(read_outcomes(write(PAPER)))
    by_name = {c.predictor: c for c in found.correlations}
    assert by_name["entropy_nats"].spearman == pytest.approx(0.70)
    assert by_name["pass_at_1"].spearman == pytest.approx(-0.90)
    # Exact two-sided p-values for five pairs: 28/120 and 10/120.
    assert by_name["entropy_nats"].p_value == pytest.approx(28 / 120)
    assert by_name["pass_at_1"].p_value == pytest.approx(10 / 120)
    assert by_name["entropy_nats"].method == "exact"
    # The widest gap in scores is .608 to .481: only 5.8 is bad.
    assert found.outcome_cut == pytest.approx(0.5445)
    assert found.tau_h == pytest.approx((0.120 + 0.156) / 2)
    assert found.training_error == 0.0
    assert found.leave_one_out_error == pytest.approx(1 / 5)
    assert "1 of 5 when each is left out" in found.message
    stricter = calibrate(read_outcomes(write(PAPER)), outcome_cut=0.78)
    assert stricter.tau_h == pytest.approx((0.171 + 0.227) / 2)


def test_too_little_data(write):
    found = calibrate(read_outcomes(write("\n".join(PAPER.splitlines()[:4]))))
    assert found.tau_h is None and found.leave_one_out_error is None
    assert "too little data to fit tau_H: 3 checkpoints" in found.message
    assert len(found.correlations) == 2
    same = "checkpoint,score,entropy_nats\n" + "".join(f"{i},0.5,0.{i}\n" for i in range(1, 7))
    assert "all scores are equal" in calibrate(read_outcomes(write(same))).message
    one_side = calibrate(read_outcomes(write(PAPER)), outcome_cut=0.1)
    assert "same side of 0.1" in one_side.message


def test_joined_with_a_screening_by_name(write):
    checkpoints = tuple(
        bare_checkpoint(
            f"checkpoint-{i}",
            0.1 * i,
            pass_at_1=0.5 - 0.01 * i,
            degenerate_fraction=1.0 - 0.1 * i,
        )
        for i in range(1, 10)
    )
    report = ScreeningReport(checkpoints, {})
    rows = "".join(f"checkpoint-{i}, {i * i}\n" for i in range(1, 10))
    found = calibrate(read_outcomes(write(f"checkpoint, score\n{rows}other, 3\n")), report)
    by_name = {c.predictor: c for c in found.correlations}
    assert found.num_checkpoints == 9
    assert by_name["degenerate_fraction"].spearman == pytest.approx(-1.0)
    assert by_name["entropy_nats"].method == "permutation"
    assert by_name["entropy_nats"].p_value < 0.001
    assert "not screened and without entropy_nats: other" in found.message
    restored = ScreeningReport.from_dict(ScreeningReport(checkpoints, {}, None, found).to_dict())
    assert restored.calibration == found
    with pytest.raises(ValueError, match="names in the CSV are nobody, screened were checkpoint-1"):
        calibrate(read_outcomes(write("checkpoint,score\nnobody,1\n")), report)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,score\na,1\n", "no column checkpoint"),
        ("checkpoint,score\na,1\na,2\n", "line 3: checkpoint 'a' was there before"),
        ("checkpoint,score\na,high\n", r"line 2 \(a\): could not convert"),
        ("checkpoint,score\na,\n", "a score is needed"),
        ("checkpoint,score\na,nan\n", "finite"),
        ("checkpoint,score\n,1\n", "no checkpoint's name"),
        ("checkpoint,score\nä,1\n", "outcomes.csv cannot be read .*comma-separated UTF-8"),
        (f"checkpoint,score\n{'a' * 200_000},1\n", "outcomes.csv cannot be read .*field larger"),
    ],
)
def test_broken_files(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_outcomes(write(text))


def test_threshold():
    assert fit_threshold([0.1, 0.2, 0.4], [False, False, True]) == pytest.approx(0.3)
    assert fit_threshold([0.1, 0.2], [True, True]) == 0.0
    assert fit_threshold([0.1, 0.2], [False, False]) == float("inf")


def test_entropy_that_orders_the_wrong_way_round_gives_no_threshold(write):
    rows = "".join(f"{i},{i},{1.0 - 0.1 * i}\n" for i in range(1, 7))
    found = calibrate(
        read_outcomes(write(f"checkpoint,score,entropy_nats\n{rows}")), outcome_cut=3.5
    )
    assert found.tau_h is None
    assert "no entropy separates" in found.message
