import pytest

from entropyfloor.screening.conclude import recommend
from sample_reports import bare_checkpoint


def found(name, verdict, entropy=0.3, **more):
    return bare_checkpoint(name, entropy, verdict=verdict, **more)


def scored(name, verdict, pass_at_1, degenerate, pass_at_8, **more):
    return found(
        name,
        verdict,
        pass_at_1=pass_at_1,
        degenerate_fraction=degenerate,
        pass_at_k={1: pass_at_1, 8: pass_at_8},
        **more,
    )


LADDER = [
    scored("base", "at risk", 0.0, 1.0, 0.0, entropy=2.7),
    scored("one", "ready", 0.5, 0.2, 0.9),
    scored("two", "ready", 0.6, 0.4, 0.85),
    scored("three", "collapsed", 0.8, 0.7, 0.82, entropy=0.02),
]


def test_fewest_degenerate_groups_among_the_ready():
    advice = recommend(LADDER)
    assert (advice.name, advice.highest_pass_at_1, advice.k) == ("one", "three", 8)
    assert advice.cost_degenerate_fraction == pytest.approx(0.5)
    assert advice.cost_pass_at_k == pytest.approx(0.08)
    assert (
        "it is collapsed, with 70% instead of 20% degenerate groups, pass@8 0.82 instead of 0.90"
        in advice.cost
    )
    assert set(advice.disagreements) == {
        "entropy_nats would choose base",
        "pass_at_1 would choose three",
    }
    assert advice.predictors["pass_at_8"] == "one"


def test_nothing_is_recommended_if_all_are_flagged():
    advice = recommend([LADDER[0], LADDER[3]])
    assert advice.name is None
    assert "every checkpoint is flagged (three has the fewest degenerate groups, 70%)" in (
        advice.reason
    )
    unscored = recommend([found("a", "at risk", 0.1), found("b", "collapsed", 0.01)])
    assert "a has the highest entropy" in unscored.reason


def test_without_reward():
    plain = [found("base", "ready", 2.7), found("one", "ready", 0.3), found("two", "at risk", 0.1)]
    advice = recommend(plain)
    assert advice.name == "one" and "deepest" in advice.reason
    assert advice.highest_pass_at_1 is None and advice.cost == ""
    losses = [
        found("a", "ready", held_out_loss=0.4, kl_to_base=0.2),
        found("b", "ready", held_out_loss=0.5, kl_to_base=0.1),
    ]
    advice = recommend(losses)
    assert advice.name == "a" and "held-out loss" in advice.reason
    assert advice.disagreements == ("kl_to_base would choose b",)


def test_the_same_checkpoint_costs_nothing():
    advice = recommend(LADDER[:2])
    assert advice.name == advice.highest_pass_at_1 == "one"
    assert advice.cost == "" and advice.cost_degenerate_fraction is None


def test_undecided_only_if_none_is_ready():
    advice = recommend([found("a", "at risk", 0.1), found("b", "undecided", 0.2)])
    assert advice.name == "b"
    assert advice.reason == "the only one that is undecided (none is ready)"


def test_one_checkpoint_is_not_chosen_among_others():
    advice = recommend([scored("a", "undecided", 0.2, 0.4, 0.8)])
    assert (advice.name, advice.highest_pass_at_1) == ("a", "a")
    assert advice.reason == "it is undecided, and the only checkpoint given"
