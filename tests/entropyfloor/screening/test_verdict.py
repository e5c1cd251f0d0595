import pytest

from entropyfloor.measures.groups import p_star
from entropyfloor.measures.intervals import Interval
from entropyfloor.measures.rank_correlation import spearman
from entropyfloor.screening.verdict import verdict

# arXiv 2606.18487, Qwen2.5-Coder-3B: epochs, entropy, pass@1, peak pass@10 of GRPO.
PAPER = [
    (1.0, 0.227, 0.151, 0.806),
    (1.9, 0.163, 0.163, 0.750),
    (2.9, 0.156, 0.159, 0.671),
    (3.8, 0.171, 0.173, 0.608),
    (5.8, 0.120, 0.187, 0.481),
]
DEEPSEEK = [(1.0, 0.399, 0.351, 0.861), (5.8, 0.185, 0.413, 0.888)]


def test_the_papers_table():
    flags = [verdict(entropy, tau_h=0.18).flagged for _, entropy, _, _ in PAPER]
    assert flags == [False, True, True, True, True]
    assert not any(verdict(entropy, tau_h=0.18).flagged for _, entropy, _, _ in DEEPSEEK)

    ratios = [pass_rate / p_star(8) for _, _, pass_rate, _ in PAPER]
    assert ratios == pytest.approx([1.82, 1.97, 1.92, 2.09, 2.26], abs=0.01)

    outcome = [row[3] for row in PAPER]
    assert spearman([row[1] for row in PAPER], outcome) == pytest.approx(0.70)
    assert spearman([row[2] for row in PAPER], outcome) == pytest.approx(-0.90)
    # Highest pass@1 picks the worst start; highest entropy picks the best.
    assert max(PAPER, key=lambda row: row[2])[3] == min(outcome)
    assert max(PAPER, key=lambda row: row[1])[3] == max(outcome)


def test_reasons_say_number_and_threshold():
    judged = verdict(0.0631, tau_h=0.18)
    assert judged.flagged
    (reason,) = judged.reasons
    assert "0.063 nats is below tau_H = 0.18" in reason
    assert verdict(0.18, tau_h=0.18).reasons == ()


def test_notes_do_not_flag():
    judged = verdict(
        0.3,
        interval=Interval(0.1, 0.5),
        p_hat_over_p_star=0.4,
        degenerate_fraction=0.9,
        group_size=8,
        truncated_fraction=0.25,
        temperature=0.7,
    )
    assert not judged.flagged
    text = "\n".join(judged.notes)
    for words in (
        "contains tau_H",
        "0.40 of p*(8)",
        "90% of groups of 8",
        "25% of rollouts",
        "0.7",
    ):
        assert words in text


@pytest.mark.parametrize("tau_h", [-0.1, float("nan"), float("inf")])
def test_tau_h_must_be_an_entropy(tau_h):
    with pytest.raises(ValueError, match="tau_h is an entropy in nats"):
        verdict(0.3, tau_h=tau_h)
