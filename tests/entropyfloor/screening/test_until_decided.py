from dataclasses import replace

import pytest

from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.screening.from_rollouts import screen_from_rollouts
from flat_calls import even, screen

PROMPTS = PromptSet(
    tuple({"prompt": f"{a}+{a * 37}=", "answer": str(38 * a)} for a in range(1, 26)), "sums"
)
OPTIONS = {"max_new_tokens": 6, "progress": False, "num_samples": 4, "group_size": 4}


def test_clear_cases_stop_early_and_say_what_they_saved(save_checkpoint):
    directories = [save_checkpoint("wide"), save_checkpoint("narrow", peak=1000.0)]
    report = screen(directories, prompts=PROMPTS, until_decided=True, **OPTIONS)
    wide, narrow = report.checkpoints
    assert (wide.sequential.decision, narrow.sequential.decision) == ("above", "below")
    assert wide.verdict == "ready" and narrow.flagged
    for checkpoint in (wide, narrow):
        record = checkpoint.sequential
        assert record.samples_planned == 100
        assert record.samples_drawn == checkpoint.num_rollouts <= 40
        assert checkpoint.samples_saved == 100 - record.samples_drawn
        assert checkpoint.num_prompts * 4 == checkpoint.num_rollouts, "groups are whole"
    assert type(report).from_dict(report.to_dict()) == report


def test_a_borderline_case_draws_everything(save_checkpoint):
    directory = save_checkpoint()
    full = screen([directory], prompts=PROMPTS, **OPTIONS)
    tau_h = full.checkpoints[0].entropy_nats
    report = screen([directory], prompts=PROMPTS, until_decided=True, tau_h=tau_h, **OPTIONS)
    (checkpoint,) = report.checkpoints
    assert checkpoint.sequential.decision == "undecided"
    assert checkpoint.samples_saved == 0
    assert checkpoint.verdict == "undecided"
    assert checkpoint.entropy_nats == pytest.approx(tau_h, rel=1e-6)


@pytest.mark.parametrize("tau_h", [0.18, None])
def test_reported_again_without_a_model(save_checkpoint, tmp_path, tau_h):
    directory = save_checkpoint()
    options = {**OPTIONS, "prompts": PROMPTS, "reward": even}
    if tau_h is None:  # a borderline case
        tau_h = screen([directory], **options).checkpoints[0].entropy_nats
    found = screen(
        [directory], until_decided=True, tau_h=tau_h, output_dir=tmp_path / "out", **options
    )
    (again,) = screen_from_rollouts(tmp_path / "out").checkpoints
    assert replace(again, runtime_s=0.0) == replace(found.checkpoints[0], runtime_s=0.0)
    # Another threshold is judged at the looks that were taken, and no others.
    new = found.checkpoints[0].entropy_nats
    (other,) = screen_from_rollouts(tmp_path / "out", tau_h=new).checkpoints
    assert other.sequential.decision == "undecided"
    assert other.sequential.samples_drawn == found.checkpoints[0].sequential.samples_drawn


def test_resumed_and_reused(save_checkpoint, tmp_path):
    directory = save_checkpoint()
    options = {**OPTIONS, "prompts": PROMPTS, "reward": even, "output_dir": tmp_path / "out"}
    early = screen([directory], until_decided=True, **options)
    lines = len((tmp_path / "out/rollouts-model.jsonl").read_text().splitlines())
    assert lines == early.checkpoints[0].sequential.samples_drawn
    whole = screen([directory], **options)
    assert whole.checkpoints[0].num_rollouts == 100 and whole.checkpoints[0].sequential is None
    again = screen([directory], until_decided=True, **options)
    assert again.checkpoints[0].num_rollouts == early.checkpoints[0].num_rollouts
    assert again.checkpoints[0].entropy_nats == early.checkpoints[0].entropy_nats


def test_too_few_prompts(save_checkpoint):
    with pytest.raises(ValueError, match="looks at 8 prompts or more; sums has 7"):
        screen(
            [save_checkpoint()],
            prompts=PromptSet(PROMPTS.rows[:7], "sums"),
            until_decided=True,
            **OPTIONS,
        )
