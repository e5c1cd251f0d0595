import pytest

from entropyfloor.screening.conclude import recommend
from entropyfloor.screening.verdict import judge
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.groups import p_star
from entropyfloor.stats.intervals import Interval
from entropyfloor.stats.rank_correlation import spearman
from sample_reports import bare_checkpoint

# arXiv 2606.18487, Qwen2.5-Coder-3B: epochs, entropy, pass@1, peak pass@10 of GRPO.
PAPER = [
    (1.0, 0.227, 0.151, 0.806),
    (1.9, 0.163, 0.163, 0.750),
    (2.9, 0.156, 0.159, 0.671),
    (3.8, 0.171, 0.173, 0.608),
    (5.8, 0.120, 0.187, 0.481),
]
DEEPSEEK = [(1.0, 0.399, 0.351, 0.861), (5.8, 0.185, 0.413, 0.888)]


def entropy_alone(entropy, *, interval=None, **options):
    intervals = {} if interval is None else {"entropy_nats": Interval(*interval)}
    return judge({"entropy_nats": entropy}, intervals, tau_h=0.18, **options)


def scored(entropy=0.3, ratio=3.0, wrong=0.1, right=0.1, width=0.0, junk_interval=None, **more):
    measures = {
        "entropy_nats": entropy,
        "p_hat_over_p_star": ratio,
        "degenerate_fraction": wrong + right,
        "degenerate_all_wrong": wrong,
        "degenerate_all_right": right,
        **more,
    }
    names = ("entropy_nats", "p_hat_over_p_star", "degenerate_fraction")
    intervals = {n: Interval(measures[n] - width, measures[n] + width) for n in names if width}
    if junk_interval is not None:
        intervals["junk_fraction"] = junk_interval
    return judge(measures, intervals, group_size=8)


def record(name, entropy, pass_at_1=None, **more):
    ratio = None if pass_at_1 is None else pass_at_1 / p_star(8)
    found = judge(
        {"entropy_nats": entropy, "p_hat_over_p_star": ratio, **more}, {}, tau_h=0.18, group_size=8
    )
    return bare_checkpoint(
        name,
        entropy,
        pass_at_1=pass_at_1,
        verdict=found.verdict,
        flagged=found.flagged,
        p_hat_over_p_star=ratio,
        **more,
    )


@pytest.mark.parametrize("scored_too", [False, True])
def test_the_papers_table(scored_too):
    found = [record(str(e), h, p if scored_too else None) for e, h, p, _ in PAPER]
    assert [c.flagged for c in found] == [False, True, True, True, True]
    deepseek = [record(str(e), h, p if scored_too else None) for e, h, p, _ in DEEPSEEK]
    assert not any(c.flagged for c in deepseek)

    ratios = [pass_rate / p_star(8) for _, _, pass_rate, _ in PAPER]
    assert ratios == pytest.approx([1.82, 1.97, 1.92, 2.09, 2.26], abs=0.01)

    outcome = [row[3] for row in PAPER]
    assert spearman([row[1] for row in PAPER], outcome) == pytest.approx(0.70)
    assert spearman([row[2] for row in PAPER], outcome) == pytest.approx(-0.90)

    # The recommendation is the best start; highest pass@1 picks the worst.
    advice = recommend(found)
    after_rl = dict(zip((c.name for c in found), outcome, strict=True))
    assert after_rl[advice.name] == max(outcome)
    assert recommend(deepseek).name == "5.8"  # .888 after RL, the better of the two
    if scored_too:
        assert after_rl[advice.highest_pass_at_1] == min(outcome)
        assert advice.highest_pass_at_1 == "5.8"
        assert advice.cost == "it is at risk, with entropy 0.120 instead of 0.227 nats"
        assert advice.disagreements == ("pass_at_1 would choose 5.8",)


@pytest.mark.parametrize(
    ("entropy", "interval", "expected"),
    [
        (0.30, (0.20, 0.40), "ready"),
        (0.18, None, "ready"),
        (0.30, (0.10, 0.50), "undecided"),
        (0.12, (0.10, 0.20), "undecided"),
        (0.12, (0.10, 0.15), "at risk"),
        (0.06, (0.05, 0.08), "collapsed"),
        (0.06, (0.05, 0.10), "at risk"),
    ],
)
def test_without_reward_entropy_alone_decides_and_says_so(entropy, interval, expected):
    found = entropy_alone(entropy, interval=interval)
    assert found.verdict == expected
    assert found.flagged == (expected in ("at risk", "collapsed"))
    assert "rests on entropy against tau_H alone" in " ".join(found.notes)
    assert f"{entropy:.3f} nats" in found.reasons[0]


@pytest.mark.parametrize(
    ("given", "expected", "words"),
    [
        ({}, "ready", "80% of groups of 8 differ"),
        ({"entropy": 0.05, "right": 0.7}, "collapsed", "80% of groups of 8 agree"),
        ({"right": 0.7}, "at risk", "70% all right; pass@8 0.90"),
        ({"ratio": 0.5}, "at risk", "0.50 of p*(8)"),
        ({"entropy": 0.05}, "at risk", "below tau_H"),
        ({"right": 0.38, "width": 0.05}, "undecided", "contains one half"),
        ({"ratio": 1.01, "width": 0.05}, "undecided", "contains 1"),
        ({"entropy": 0.19, "width": 0.05}, "ready", "80% of groups"),
        ({"entropy": 0.01, "right": 0.38, "width": 0.05}, "at risk", "below tau_H"),
    ],
)
def test_with_a_reward_the_mechanism_decides(given, expected, words):
    found = scored(**given)
    assert found.verdict == expected
    assert words in " ".join(found.reasons)


def test_disagreement_of_entropy_and_reward_is_named():
    assert "entropy and the reward disagree" in " ".join(scored(entropy=0.05).notes)
    assert "does not see what the reward sees" in " ".join(scored(ratio=0.1).notes)


def test_the_sequential_decision_counts_for_the_entropy():
    record_ = SequentialRecord("below", 2, 100, 40, 0.1, 0.19, 0.03)
    found = entropy_alone(0.15, interval=(0.1, 0.2), sequential=record_)
    assert found.verdict == "at risk"


def test_notes():
    text = "\n".join(
        judge(
            {"entropy_nats": 0.3, "truncated_fraction": 0.25, "repetition": 0.9},
            {},
            temperature=0.7,
        ).notes
    )
    for words in ("25% of rollouts", "90% of 4-grams", "temperature 0.7"):
        assert words in text


@pytest.mark.parametrize(
    ("junk", "width", "given", "expected"),
    [
        (0.9, 0.05, {"entropy": 7.0, "wrong": 0.8}, "junk"),
        (0.9, 0.05, {"entropy": 7.0}, "junk"),  # the reward speaks for it: still no exploration
        (0.6, 0.15, {}, "ready"),  # the interval contains one half
        (0.2, 0.05, {}, "ready"),
        (0.9, 0.05, {"entropy": 0.05, "right": 0.7}, "collapsed"),
    ],
)
def test_junk(junk, width, given, expected):
    interval = Interval(junk - width, junk + width)
    found = scored(**given, junk_fraction=junk, junk_interval=interval)
    assert found.verdict == expected and found.flagged == (expected != "ready")
    said = " ".join((*found.reasons, *found.notes))
    assert f"{junk:.0%} of rollouts are degenerate text" in said
    if expected == "junk":
        assert "is no exploration" in found.reasons[0]
        assert ("agree on their reward" in " ".join(found.reasons[1:])) == ("wrong" in given)


def test_label_smoothing_without_a_reward_is_junk_and_not_ready():
    intervals = {"entropy_nats": Interval(6.8, 7.4), "junk_fraction": Interval(0.9, 1.0)}
    found = judge({"entropy_nats": 7.1, "junk_fraction": 0.97}, intervals)
    assert found.verdict == "junk"
    assert judge({"entropy_nats": 7.1}, {}).verdict == "ready"


@pytest.mark.parametrize("tau_h", [-0.1, float("nan"), float("inf")])
def test_tau_h_must_be_an_entropy(tau_h):
    with pytest.raises(ValueError, match="tau_h is an entropy in nats"):
        judge({"entropy_nats": 0.3}, {}, tau_h=tau_h)
