import pytest

from entropyfloor.echelon.conclusions import conclusions, ladders
from entropyfloor.echelon.depth_plot import write_depth_plot
from entropyfloor.echelon.screening_store import load_screening
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.stats.intervals import Interval

SETTINGS = {
    "tau_h": 0.18,
    "group_size": 8,
    "ks": [1, 8],
    "num_samples": 8,
    "temperature": 1.0,
    "max_new_tokens": 64,
    "reward": "reasoning_gym",
    "seed": 0,
    "prompts": {"count": 24},
}


def checkpoint(name, entropy, pass_at_1, degenerate, width=0.01):
    around = {
        "entropy_nats": Interval(entropy - width, entropy + width),
        "degenerate_fraction": Interval(max(0.0, degenerate - 0.2), min(1.0, degenerate + 0.2)),
    }
    return CheckpointScreening(
        name=name,
        path=f"somewhere/{name}",
        num_prompts=24,
        num_rollouts=192,
        entropy_nats=entropy,
        unique_fraction=0.5,
        mean_tokens=20.0,
        truncated_fraction=0.0,
        num_scored_prompts=24,
        pass_at_1=pass_at_1,
        pass_at_k={1: pass_at_1, 8: min(1.0, 2 * pass_at_1)},
        degenerate_fraction=degenerate,
        degenerate_all_wrong=0.0,
        degenerate_all_right=degenerate,
        p_hat_over_p_star=pass_at_1 / 0.083,
        mean_reward=pass_at_1,
        intervals=around,
        flagged=entropy < 0.18,
        reasons=("low",) if entropy < 0.18 else (),
        notes=("a note",),
    )


def report(sed_entropy, width=0.01):
    return ScreeningReport(
        (
            checkpoint("base", 2.7, 0.0, 1.0),
            checkpoint("ce-depth-4", 0.03, 0.8, 0.7, width),
            checkpoint("ce-depth-1", 0.20, 0.6, 0.3, width),
            checkpoint("sed-depth-1", 0.21, 0.6, 0.4, width),
            checkpoint("sed-depth-4", sed_entropy, 0.7, 0.5, width),
        ),
        SETTINGS,
    )


def test_ladders_are_ordered_by_depth_and_leave_out_the_base():
    found = {loss: [c.name for c in steps] for loss, steps in ladders(report(0.3)).items()}
    assert found == {
        "ce": ["ce-depth-1", "ce-depth-4"],
        "sed": ["sed-depth-1", "sed-depth-4"],
    }


def test_the_course_of_each_loss_is_told_from_the_base_on():
    words = " ".join(conclusions(report(0.3)))
    assert "CE, base and after 1, 4 epochs: rollout entropy 2.700 → 0.200 → 0.030 nats" in words
    assert "pass@1 0.00 → 0.60 → 0.80" in words


@pytest.mark.parametrize(
    ("entropy", "relation"),
    [
        (0.30, "entropy 0.300 against 0.030 (higher, intervals apart)"),
        (0.04, "entropy 0.040 against 0.030 (no difference shown, intervals overlap)"),
        (0.001, "entropy 0.001 against 0.030 (lower, intervals apart)"),
    ],
)
def test_a_difference_is_claimed_only_where_intervals_are_apart(entropy, relation):
    assert relation in " ".join(conclusions(report(entropy)))


def test_the_verdict_counts_flags_and_shows_what_pass_at_1_would_pick():
    words = " ".join(conclusions(report(0.04)))
    assert "2 of 4 checkpoints are below tau_H = 0.18" in words
    assert "would pick ce-depth-4 (0.80), where 70% of groups are degenerate" in words
    assert "ce-depth-1 has the fewest, 30%, at pass@1 0.60" in words


def test_one_loss_alone_is_compared_with_nothing():
    alone = ScreeningReport(report(0.3).checkpoints[:3], SETTINGS)
    assert not [sentence for sentence in conclusions(alone) if "against" in sentence]


def test_a_screening_comes_back_from_disk_as_it_was(tmp_path):
    written = report(0.3)
    written.write_json(tmp_path / "screening.json")
    assert load_screening(tmp_path) == written


def test_a_screening_that_is_missing_or_cut_off_is_none(tmp_path):
    assert load_screening(tmp_path) is None
    whole = report(0.3).write_json(tmp_path / "screening.json").read_text()
    (tmp_path / "screening.json").write_text(whole[: len(whole) // 2])
    assert load_screening(tmp_path) is None


def test_the_plot_is_drawn(tmp_path):
    target = write_depth_plot(report(0.3), tmp_path / "new" / "depths.png")
    assert target.read_bytes().startswith(b"\x89PNG")
