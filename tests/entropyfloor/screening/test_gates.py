import json

import pytest

from entropyfloor.cli.main import main
from entropyfloor.screening.conclude import check_base, judge_gates, measured_ks
from entropyfloor.screening.options import Gate, Judging
from sample_reports import report


def judged(**limits):
    found = report(3)
    return judge_gates(Judging(**limits).gates, found.checkpoints, found.comparisons)


def test_each_gate_by_hand():
    found = report(3)
    limit = found.checkpoints[1].pass_at_k[8]
    at_k = judged(min_pass_at=[f"8:{limit}"])
    assert [r.passed for r in at_k] == [c.pass_at_k[8] >= limit for c in found.checkpoints]
    assert at_k[1].passed and not at_k[1].certain  # equal to the limit is at least the limit
    assert at_k[0].metric == "pass_at_8" and at_k[0].gate == f"min_pass_at 8:{limit}"
    limit = found.checkpoints[1].degenerate_fraction
    most = judged(max_degenerate=limit)
    assert [r.passed for r in most] == [c.degenerate_fraction <= limit for c in found.checkpoints]
    kept = judged(min_coverage=0.9)
    coverage = [pair.coverage.kept for pair in found.comparisons]
    assert [(r.checkpoint, r.value) for r in kept] == [
        (c.name, share) for c, share in zip(found.checkpoints[1:], coverage, strict=True)
    ]
    assert [r.passed for r in kept] == [share >= 0.9 for share in coverage]
    assert len(judged(min_pass_at=["8:0.1", "1:0.9"], min_coverage=0.5, max_degenerate=1)) == 11


def test_a_sure_one_is_told_from_an_unsure_one():
    sure, unsure = judged(min_pass_at=["8:0.01"])[0], judged(min_pass_at=["8:0.6"])[0]
    assert sure.certain and sure.interval.low > 0.01
    assert unsure.certain == (not unsure.interval.low <= 0.6 <= unsure.interval.high)


def test_gates_that_cannot_work():
    for words in ("16", "16:", "a:0.5", "0.6:16", "8:1.5"):
        with pytest.raises(ValueError, match="K:SHARE, such as 16:0"):
            Judging(min_pass_at=[words])
    with pytest.raises(ValueError, match="--max_degenerate is a share between 0 and 1; got 50"):
        Judging(max_degenerate=50)
    with pytest.raises(ValueError, match="--min_coverage: pass rates need a reward"):
        measured_ks(8, Judging(min_coverage=0.9), scored=False)
    with pytest.raises(ValueError, match="got k = 16"):
        measured_ks(8, Judging(min_pass_at=["16:0.5"]), scored=True)
    with pytest.raises(ValueError, match="give the base as a checkpoint too"):
        check_base(Judging(min_coverage=0.9), 1)
    assert measured_ks(8, Judging(ks=[1, 2], min_pass_at=["5:0.1"]), scored=True) == (1, 2, 5)
    assert str(Gate.pass_at("16:0.6")) == "min_pass_at 16:0.6"


PASSING, FAILING = (
    {
        "min_pass_at": (["--min_pass_at", "1:0", "--min_pass_at", "4:0.0"]),
        "min_coverage": (["--min_coverage", "0"]),
        "max_degenerate": (["--max_degenerate", "1"]),
    },
    {
        "min_pass_at": (["--min_pass_at", "4:1"]),
        "min_coverage": (["--min_coverage", "1"]),
        "max_degenerate": (["--max_degenerate", "0"]),
    },
)


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """Two checkpoints of random weights: a quarter of the rollouts passes, by chance."""
    from entropyfloor.rollouts.options import Output, Sampling
    from entropyfloor.rollouts.prompts import PromptSet
    from entropyfloor.screening.screen import screen
    from tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("gates")
    for seed, name in enumerate(("base", "tuned")):
        save_tiny(folder / name, seed=seed)
    screen(
        [folder / "base", folder / "tuned"],
        PromptSet(tuple({"prompt": f"{a}+1="} for a in range(6))),
        by_fours,
        sampling=Sampling(num_samples=4, max_new_tokens=4),
        judging=Judging(group_size=4),
        output=Output(folder / "out", progress=False),
    )
    return folder / "out"


def by_fours(completion_ids, **_):
    return [float(ids[0] % 4 == 0) for ids in completion_ids]


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        *((flags, 0) for flags in PASSING.values()),
        *((flags, 4) for flags in FAILING.values()),
        ([word for flags in PASSING.values() for word in flags], 0),
        ([word for flags in FAILING.values() for word in flags], 4),
        (PASSING["min_pass_at"] + FAILING["max_degenerate"], 4),
        (["--tau_h", "9"], 0),  # flagged, but --fail_on none is given to all
    ],
)
def test_exit_code_json_and_page(flags, code, screened, tmp_path, capsys):
    target = tmp_path / "o.json"
    words = ["screen", "--from_rollouts", str(screened), "--json", str(target), *flags]
    words += ["--html", str(tmp_path / "o.html"), "--markdown", str(tmp_path / "o.md")]
    assert main([*words, "--fail_on", "none"]) == code
    gates = json.loads(target.read_text())["gates"]
    assert all(gate["passed"] for gate in gates) == (code == 0)
    page, text = (tmp_path / "o.html").read_text(), (tmp_path / "o.md").read_text()
    printed = capsys.readouterr().out
    asked = {g["gate"] for g in gates}
    assert len(asked) == sum(flag.startswith(("--min", "--max")) for flag in flags)
    for gate in gates:
        assert gate["gate"] in page and gate["gate"] in printed
        word = "passed" if gate["passed"] else "failed"
        assert f"{gate['value']:.3f} {word}" in page and f"{gate['value']:.3f} {word}" in text
    assert ("Gates" in page) == bool(gates)
    if code == 4:  # a gate goes before a verdict, and a verdict alone is 3
        assert main([*words, "--tau_h", "9"]) == 4
    elif "--tau_h" in flags:
        assert main([*words, "--fail_on", "at-risk", "collapsed"]) == 3
