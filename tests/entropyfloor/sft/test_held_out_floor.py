"""entropy_floor="auto": a floor that is read off the loss of held-out rows."""

import json
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from sft_runs import Run, arguments, build, sed_trainer, text_rows
from transformers import Trainer, TrainingArguments

from entropyfloor import EntropyFloorCallback, SEDConfig, SEDTrainer, patch_model
from entropyfloor.gft.config import GFTConfig
from entropyfloor.sft.floor.held_out import HeldOutSlice, hold_out
from entropyfloor.sft.floor.probe import last_above, measured
from entropyfloor_losses import loss_by_name
from tiny_models import tiny_model, tiny_tokenizer

AUTO = {
    "loss": "ce",
    "entropy_floor": "auto",
    "optim": "adamw_torch",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "floor_probe_steps": 4,
    "floor_probe_prompts": 0,
}


def guessed_rows(count: int = 60) -> Dataset:
    """Each prompt is answered by one of four letters at random: log 4 nats no one can earn."""
    letters = np.random.default_rng(0).integers(4, size=count)
    return Dataset.from_list(
        [{"prompt": f"{i} =", "completion": "abcd"[k]} for i, k in enumerate(letters)]
    )


def auto(tmp_path, *, trainer=None, **config):
    rows = {"train_dataset": guessed_rows(), **(trainer or {})}
    return sed_trainer(tmp_path, trainer=rows, **{**AUTO, **config})


def test_means_of_held_out_rows_are_those_of_full_logits():
    model = tiny_model()
    head = patch_model(model, loss_by_name("sed"))
    batches = [
        {"input_ids": ids, "labels": labels}
        for ids, labels in [
            (torch.arange(24).reshape(3, 8), torch.arange(24).reshape(3, 8)),
            (
                torch.arange(30, 40)[None],
                torch.full((1, 10), -100).index_fill(1, torch.tensor(7), 3),
            ),
        ]
    ]
    losses, entropies = [], []
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].double().numpy()
        labels = batch["labels"][:, 1:].numpy()
        log_p = logits - logits.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        for row, label in zip(log_p.reshape(-1, log_p.shape[-1]), labels.ravel(), strict=True):
            if label != -100:
                losses.append(-row[label])
                entropies.append(-(np.exp(row) * row).sum())
    assert len(losses) == 22
    model.train()
    state = torch.random.get_rng_state()
    loss, entropy = head.held_out_means(batches)
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert entropy == pytest.approx(np.mean(entropies), rel=1e-6)
    assert model.training and torch.equal(state, torch.random.get_rng_state())
    assert head.loss == loss_by_name("sed") and head.pop_sums(training=False)["tokens"] == 0
    with pytest.raises(ValueError, match="no scored token"):
        head.held_out_means(
            [{"input_ids": torch.arange(4)[None], "labels": torch.full((1, 4), -100)}]
        )


class Measured:
    """Stands in for a head: its held-out means are those of a list."""

    device = torch.device("cpu")

    def __init__(self, course):
        self._course = iter(course)

    def held_out_means(self, batches, model):
        return next(self._course)


@pytest.mark.parametrize(
    ("course", "in_force", "floor"),
    [
        # loss, entropy: both fall alike, so that confidence is earned
        ([(1.0, 1.4), (0.6, 0.9), (0.55, 0.84)], [False, False, False], 0.55),
        # too sure from the start: the loss falls to the entropy
        ([(3.0, 1.2), (2.0, 1.1), (1.2, 0.9)], [False, False, False], 1.2),
        # entropy falls and the loss does not: in force, and it stays so
        ([(1.0, 1.4), (0.6, 0.9), (0.59, 0.6), (0.5, 0.6)], [False, False, True, True], 0.5),
        # both rise
        ([(0.5, 0.6), (0.7, 0.8)], [False, False], 0.5),
    ],
)
def test_when_it_comes_into_force(course, in_force, floor):
    rows = HeldOutSlice(lambda: [{}], 2.0, "rows")
    states = []
    for _ in course:
        rows.measure(Measured(course[len(states) :]), None)
        states.append(rows.in_force)
    assert states == in_force and rows.floor == pytest.approx(2.0 * floor)


def test_it_holds_entropy_at_the_lowest_loss(tmp_path):
    """Without it entropy falls far below what held-out rows cost, and their loss rises."""
    settings = {"max_steps": 130, "floor_probe_steps": 2}
    warned = Run.of(auto(tmp_path / "ce", on_violation="warn", **settings))
    held = Run.of(auto(tmp_path / "floor", **settings))
    ends = {}
    for name, run in {"warned": warned, "held": held}.items():
        floor = run.trainer.floor
        assert floor.held_out.in_force
        assert floor.controller.floor == min(probe.held_out_loss for probe in floor.probes)
        gap = run.series("held_out_entropy")[-1] - run.series("held_out_loss")[-1]
        assert run.series("calibration_gap")[-1] == pytest.approx(gap)
        ends[name] = floor.probes[-1]
    assert ends["warned"].held_out_entropy < 0.75 * warned.trainer.floor.controller.floor
    assert ends["held"].held_out_entropy > 0.85 * held.trainer.floor.controller.floor
    assert ends["held"].held_out_loss < ends["warned"].held_out_loss
    assert warned.series("floor_weight")[-1] == 0.0
    in_force = held.series("floor_in_force").index(1.0)
    assert in_force > 0 and not any(held.series("floor_weight")[:in_force])


def test_until_it_is_in_force_rows_are_measured_whenever_entropy_has_fallen(tmp_path):
    """By a fifth; afterwards, the interval that costs allow is all there is."""
    trainer = auto(tmp_path, floor_probe_steps=None, max_steps=40)
    trainer.floor.probe_share = 1e-4  # after the first ten steps, none for a hundred
    run = Run.of(trainer)
    *called, last = trainer.floor.probes[2:]
    assert trainer.floor._interval > 100 and len(called) > 1 and last.step == 40
    entropies = [probe.teacher_forced for probe in trainer.floor.probes[1:-1]]
    assert all(1.25 * after < before for before, after in pairwise(entropies))
    in_force = run.series("floor_in_force")
    assert in_force[called[-1].step - 1] == 1.0 and in_force[called[-2].step - 1] == 0.0


def test_a_factor_moves_the_floor(tmp_path):
    run = Run.of(auto(tmp_path, floor_factor=0.5, max_steps=8))
    floor = run.trainer.floor
    lowest = min(probe.held_out_loss for probe in floor.probes)
    assert floor.controller.floor == pytest.approx(0.5 * lowest)
    assert run.series("entropy_floor")[-1] == floor.controller.floor


@pytest.mark.pictures
def test_checkpoints_carry_it_and_resume_goes_on_exactly(tmp_path):
    saving = {"max_steps": 24, "save_strategy": "steps", "save_steps": 12, "floor_probe_prompts": 2}
    whole = Run.of(auto(tmp_path / "whole", **saving))
    again = auto(tmp_path / "again", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    for name, value in again.model.named_parameters():
        assert torch.equal(value, whole.weights[name])
    probes = whole.trainer.floor.probes
    assert [probe.held for probe in again.floor.probes] == [probe.held for probe in probes]
    assert [probe.step for probe in probes] == [0, 4, 8, 12, 16, 20, 24]
    # Rollouts are sampled for checkpoints only.
    assert [probe.step for probe in probes if probe.entropy is not None] == [12, 24]
    record = json.loads((tmp_path / "whole/checkpoint-12/entropyfloor.json").read_text())["floor"]
    assert record["settings"]["held_out"] == "12 rows of the evaluation set"
    assert record["state"]["held_out"]["lowest_loss"] == record["settings"]["floor"]
    kept = measured(tmp_path / "whole" / "checkpoint-12")
    assert kept.held == kept.held_out_entropy != kept.entropy
    assert last_above(tmp_path / "whole", 0.0).name == "checkpoint-24"
    assert (tmp_path / "whole" / "entropy_floor.png").stat().st_size > 10_000
    assert "read off their lowest loss" in (tmp_path / "whole" / "README.md").read_text()
    fixed = auto(tmp_path / "fixed", entropy_floor=1.0, **saving)
    fixed.train()
    with pytest.raises(ValueError, match=r"entropy floor of 1.0 nats, not with 'auto'"):
        auto(tmp_path, **saving).train(
            resume_from_checkpoint=str(tmp_path / "fixed" / "checkpoint-12")
        )


def test_the_evaluation_set_is_taken_where_there_is_one(tmp_path, caplog):
    rows = guessed_rows()
    sets = {"first": rows.select(range(50, 60)), "second": rows.select(range(40, 50))}
    parts = {"train_dataset": rows.select(range(40)), "eval_dataset": sets}
    with caplog.at_level(logging.WARNING):
        trainer = auto(tmp_path, trainer=parts, floor_held_out_rows=5)
    assert "5 rows of the evaluation set 'first'" in caplog.text
    assert len(trainer.train_dataset) == 40


def test_arguments_by_place_are_kept(tmp_path):
    args = arguments(tmp_path, SEDConfig, **AUTO)
    trainer = SEDTrainer(tiny_model(), args, None, guessed_rows(), None, tiny_tokenizer())
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (48, 12)


def test_other_answers_to_a_held_out_prompt_are_held_out_too():
    rows = [{"prompt": f"{i // 3}", "completion": str(i)} for i in range(60)]
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        left, held = hold_out(dataset, 4)
        assert not {row["prompt"] for row in left} & {row["prompt"] for row in held}
        assert len(held) in (4, 12)  # a stream's first rows; of a set all answers to four prompts
    turns = [
        {
            "messages": [
                {"role": "user", "content": str(i // 2)},
                {"role": "assistant", "content": "a"},
            ]
        }
        for i in range(20)
    ]
    left, held = hold_out(Dataset.from_list(turns), 2)
    assert (len(left), len(held)) == (16, 4)
    answers = [{"messages": [{"role": "assistant", "content": str(i)}]} for i in range(20)]
    left, held = hold_out(Dataset.from_list(answers), 2)
    assert (len(left), len(held)) == (18, 2)
    left, held = hold_out(text_rows(24), 64)
    assert (len(left), len(held)) == (20, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}] * 4, "a fifth of the training set at most, and it has 4 rows"),
        ([{"prompt": "same", "completion": "a"}] * 20, "which would be 20 of 20"),
    ],
)
def test_too_little_to_hold_out(rows, message):
    with pytest.raises(ValueError, match=message):
        hold_out(Dataset.from_list(rows), 8)


def test_a_plain_trainer_reads_its_evaluation_set_or_batches_that_are_passed(tmp_path):
    rows = [{"input_ids": [i % 9 + 5, 6, 7, i % 4 + 8]} for i in range(16)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    probes = []
    for passed in ({"eval_dataset": Dataset.from_list(rows)}, {"held_out": [batch]}):
        head = patch_model(tiny_model(), "ce")
        options = {"entropy_floor": "auto", "floor_probe_steps": 2, "floor_held_out_rows": 16}
        floor = EntropyFloorCallback(
            head, **options, held_out=passed.pop("held_out", None), floor_probe_prompts=0
        )
        args = arguments(tmp_path, TrainingArguments, per_device_eval_batch_size=16)
        build(
            Trainer,
            args,
            model=head.model,
            train_dataset=Dataset.from_list(rows),
            callbacks=[floor],
            **passed,
        ).train()
        probes.append([(p.step, p.held_out_loss, p.held_out_entropy) for p in floor.floor.probes])
    assert probes[0] == probes[1] and [probe[0] for probe in probes[0]] == [0, 2, 4]
    bare = EntropyFloorCallback(patch_model(tiny_model(), "ce"), entropy_floor="auto")
    with pytest.raises(ValueError, match="there are none: give the trainer an eval_dataset"):
        bare.prepare()


def test_stop_restores_the_last_checkpoint_that_was_not_too_sure(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run.of(
            auto(
                tmp_path,
                on_violation="stop",
                max_steps=100,
                save_strategy="steps",
                save_steps=2,
                floor_probe_steps=2,
            )
        )
    assert run.trainer.state.global_step < 100
    assert "held-out entropy" in caplog.text and "restored checkpoint-" in caplog.text


def test_a_number_may_be_text_as_a_command_line_has_it(tmp_path):
    assert arguments(tmp_path, SEDConfig, entropy_floor="0.25").entropy_floor == 0.25


def test_gft_has_no_held_out_cross_entropy(tmp_path):
    with pytest.raises(ValueError, match="GFT's rows are groups of responses"):
        arguments(tmp_path, GFTConfig, entropy_floor="auto")


def test_a_loss_of_zero_leaves_a_floor_that_a_controller_can_have():
    rows = HeldOutSlice(lambda: [{}], 1.0, "rows")
    rows.measure(Measured([(0.0, 0.0)]), None)
    assert 0 < rows.floor < 1e-5 and math.isfinite(math.log(rows.floor))
