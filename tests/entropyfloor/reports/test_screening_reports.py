import io

import pytest
from rich.console import Console

from entropyfloor.measures.intervals import Interval
from entropyfloor.reports.screening_plot import write_screening_plot
from entropyfloor.reports.screening_table import remarks
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

SETTINGS = {
    "num_samples": 8,
    "group_size": 8,
    "ks": [1, 2, 4, 8],
    "tau_h": 0.18,
    "temperature": 1.0,
    "max_new_tokens": 256,
    "seed": 0,
    "reward": "exact_match",
    "prompts": {"count": 24},
}


def checkpoint(name, entropy, *, scored=True):
    scores = {
        "pass_at_1": 0.25,
        "pass_at_k": {1: 0.25, 2: 0.3, 4: 0.5, 8: 0.75},
        "degenerate_fraction": 0.5,
        "degenerate_all_wrong": 0.375,
        "degenerate_all_right": 0.125,
        "p_hat_over_p_star": 3.01,
    }
    flagged = entropy < 0.18
    return CheckpointScreening(
        name=name,
        path=name,
        num_prompts=24,
        num_rollouts=192,
        entropy_nats=entropy,
        unique_fraction=0.9,
        mean_tokens=12.5,
        truncated_fraction=0.0,
        intervals={"entropy_nats": Interval(entropy - 0.01, entropy + 0.01)},
        flagged=flagged,
        reasons=("entropy is low",) if flagged else (),
        notes=("read this",),
        **(scores if scored else {}),
    )


def report(count=2, *, scored=True):
    names = ["ce | one", *(f"sed/checkpoint-{i}" for i in range(1, count))]
    found = tuple(
        checkpoint(name, 0.1 + 2.0 * i / count, scored=scored) for i, name in enumerate(names)
    )
    return ScreeningReport(found, SETTINGS)


def text_of(report):
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table())
    return console.file.getvalue()


def test_table():
    text = text_of(report())
    for words in ("0.100", "0.090–0.110", "pass@1", "pass@4", "pass@8", "0.375 / 0.125", "3.01"):
        assert words in text
    assert text.count("not flagged") == 1
    assert "24 prompts × 8 samples" in text


def test_table_without_reward():
    text = text_of(report(scored=False))
    assert "pass@" not in text and "degenerate" not in text
    assert "no reward" in text


def test_markdown():
    lines = report().to_markdown().splitlines()
    columns = lines[1].count("|")
    assert lines[0].count("|") == lines[3].count("|") == columns
    assert lines[2].startswith(r"| ce \| one | 0.100 (0.090–0.110) | 0.250 |")
    assert "- ce | one: entropy is low" in lines


def test_remarks_put_reasons_before_notes():
    assert remarks(report())[:2] == ["ce | one: entropy is low", "ce | one: read this"]


def test_json_is_strict(tmp_path):
    broken = ScreeningReport((checkpoint("x", float("nan")),), SETTINGS)
    with pytest.raises(ValueError, match="JSON"):
        broken.write_json(tmp_path / "x.json")


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_plot(tmp_path, scored, count):
    path = write_screening_plot(report(count, scored=scored), tmp_path / "new" / "plot.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
