import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

import sample_reports
from entropyfloor.screening.figures import write_plot
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.table import remarks, screening_markdown, screening_table
from entropyfloor.stats.intervals import Interval

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
    return sample_reports.bare_checkpoint(
        name,
        entropy,
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
    console.print(screening_table(report).to_rich(200))
    return console.file.getvalue()


def test_table():
    text = text_of(report())
    for words in ("0.100", "0.090–0.110", "pass@1", "pass@4", "pass@8", "0.375 / 0.125", "3.01"):
        assert words in text
    assert text.count("flagged") == 1 and text.count("undecided") == 1
    assert "24 prompts × 8 samples" in text


def test_table_without_reward():
    text = text_of(report(scored=False))
    assert "pass@" not in text and "degenerate" not in text
    assert "no reward" in text


def test_markdown():
    lines = screening_markdown(report()).splitlines()
    columns = lines[1].count("|")
    assert lines[0].count("|") == lines[3].count("|") == columns
    assert lines[2].startswith(r"| ce \| one | flagged | 0.100 (0.090–0.110) | 0.250 |")
    assert r"- ce \| one: entropy is low" in lines


def test_remarks_put_reasons_before_notes():
    assert remarks(report())[:2] == [
        "ce | one: entropy is low",
        "ce | one, sed/checkpoint-1: read this",
    ]
    assert remarks(report(9))[1].startswith("ce | one, sed/checkpoint-1, sed/checkpoint-2 and 6 ")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(("count", "long_names"), [(2, False), (40, True)])
def test_table_of_a_narrow_terminal(width, scored, count, long_names):
    found = sample_reports.report(count, scored=scored, long_names=long_names)
    console = Console(file=io.StringIO(), width=width)
    table = screening_table(found).to_rich(width)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    # No number and no name is folded: every checkpoint is one line, or two with intervals.
    rows = [line for line in lines if "│" in line]
    assert len(rows) == count * (2 if count <= 12 else 1)
    for checkpoint in found.checkpoints:
        step = checkpoint.name.split("-")[-1]
        row = next(row for row in rows if re.search(rf"-{step} ", row))
        assert f"{checkpoint.entropy_nats:.3f}" in row and checkpoint.verdict in row
    left_out = len(screening_table(found).columns) - len(table.columns)
    assert (left_out > 0) == ("no room for" in table.caption.plain)
    assert (width > 60 or left_out > 0) and (width < 200 or left_out == 0 or long_names)


def test_advice_is_written():
    text = screening_markdown(sample_reports.report(7))
    assert "- **Start from ce/checkpoint-100: the fewest degenerate groups" in text
    assert "- **Highest pass@1 would pick ce/checkpoint-700: 0.31 more" in text
    assert "- **Calibration of tau_H: fitted on five checkpoints**" in text
    assert "| held-out loss | KL to base |" in text


def test_json_is_strict(tmp_path):
    broken = ScreeningReport((checkpoint("x", float("nan")),), SETTINGS)
    with pytest.raises(ValueError, match="JSON"):
        broken.write_json(tmp_path / "x.json")


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_plot(tmp_path, scored, count):
    path = write_plot(report(count, scored=scored), tmp_path / "new" / "plot.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
