"""tau="auto": measured once on the initial model, without a trace in the run, kept on resume."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sft_runs import Run, prompt_completion_rows, sed_trainer

from entropyfloor.sft.calibration import calibration_sample
from entropyfloor.sft.run_record import read_recorded_loss, write_run_record
from entropyfloor_losses import EntropyBonusLoss, SelectiveEntropyLoss, token_statistics
from tiny_models import tiny_model

ROWS = 12


def auto(tmp_path, *, trainer=None, **config):
    given = {"train_dataset": prompt_completion_rows(ROWS), **(trainer or {})}
    return sed_trainer(
        tmp_path, trainer=given, **{"per_device_train_batch_size": ROWS, "tau": "auto", **config}
    )


@pytest.mark.parametrize("quantile", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("loss", ["sed", "selective_entropy_bonus"])
def test_first_step_selects_the_quantile(tmp_path, loss, quantile):
    trainer = auto(tmp_path, loss=loss, quantile=quantile)
    first = Run.of(trainer).steps[0]
    assert first["selected_fraction"] == pytest.approx(quantile, abs=0.01)  # 133 tokens
    assert isinstance(trainer.loss.tau, float)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the second has dropout, off for this
def test_tau_is_the_quantile_of_the_initial_models_mass(tmp_path, family):
    trainer = auto(tmp_path, trainer={"model": tiny_model(family).train()}, top_k=3, quantile=0.4)
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = (
            tiny_model(family)
            .eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            .logits
        )
    statistics = token_statistics(logits[:, :-1], inputs["labels"][:, 1:], top_k=3)
    mass = statistics.top_k_mass[statistics.scored].double().numpy()
    trainer.calibrate()
    assert trainer.loss.tau == pytest.approx(float(np.quantile(mass, 0.4)), rel=1e-6)


def test_calibration_rows_are_spread_over_the_set(tmp_path):
    trainer = auto(tmp_path, calibration_rows=4)
    chosen = calibration_sample(trainer.train_dataset, 4)
    assert chosen["input_ids"] == [trainer.train_dataset[i]["input_ids"] for i in (0, 3, 6, 9)]
    streamed = auto(
        tmp_path,
        calibration_rows=4,
        trainer={"train_dataset": prompt_completion_rows(ROWS).to_iterable_dataset()},
    )
    expected = [trainer.train_dataset[i]["input_ids"] for i in range(4)]
    assert calibration_sample(streamed.train_dataset, 4)["input_ids"] == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3},
        {"bf16": True},
        {"packing": True, "max_length": 64, "per_device_train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"streamed": True, "per_device_train_batch_size": 4},
    ],
    ids=["plain", "accumulation", "bf16", "packing", "checkpointing", "streamed"],
)
def test_the_trajectory_is_that_of_the_same_tau_given(tmp_path, settings):
    """With dropout: calibration may use up no random number."""

    def trainer(streamed=False, **config):
        rows = prompt_completion_rows(ROWS)
        rows = rows.to_iterable_dataset() if streamed else rows
        data = {"model": tiny_model("gpt2"), "train_dataset": rows}
        return auto(tmp_path, trainer=data, **config)

    calibrated = trainer(**settings)
    ours = Run.of(calibrated)
    given = trainer(**{**settings, "tau": calibrated.loss.tau})
    assert Run.of(given).series("loss") == ours.series("loss")
    assert 0.1 < ours.steps[0]["selected_fraction"] < 0.6


def test_calibration_leaves_everything_else_alone(tmp_path):
    trainer = auto(tmp_path, trainer={"model": tiny_model("gpt2")})
    trainer.model.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trainer.calibrate()
    assert trainer.model.training
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    tau = trainer.loss.tau
    trainer.calibrate()
    assert trainer.loss.tau == tau


def test_persistent_workers_do_not_evaluate_on_the_calibration_rows(tmp_path):
    """Trainer keeps evaluation's data loader when its workers persist."""
    trainer = auto(
        tmp_path,
        trainer={"eval_dataset": prompt_completion_rows(5)},
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )
    trainer.calibrate()
    seen = sum(len(batch["input_ids"]) for batch in trainer.get_eval_dataloader())
    assert seen == 5


def test_evaluation_before_training_calibrates(tmp_path):
    trainer = auto(tmp_path, trainer={"eval_dataset": prompt_completion_rows(5)})
    metrics = trainer.evaluate()
    tau = trainer.loss.tau
    assert isinstance(tau, float)
    assert np.isfinite(metrics["eval_loss"])
    other = auto(tmp_path)
    assert Run.of(trainer).series("loss") == Run.of(other).series("loss")
    assert other.loss.tau == tau


def test_rows_without_a_scored_token(tmp_path):
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100] * 4}] * 4)
    trainer = auto(
        tmp_path,
        trainer={"train_dataset": rows},
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    with pytest.raises(ValueError, match="tau cannot be calibrated: the sample has no scored"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_uniform_bonus_is_not_calibrated(tmp_path):
    trainer = auto(tmp_path, tau=None, loss="entropy_bonus")
    trainer.calibrate()
    assert trainer.loss == EntropyBonusLoss()


class TestResume:
    settings = {  # noqa: RUF012
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "lam": 2.0,
    }

    @pytest.fixture
    def whole(self, tmp_path):
        return Run.of(auto(tmp_path, **self.settings))

    def again(self, tmp_path, **changes):
        return auto(tmp_path, trainer={"model": tiny_model(seed=5)}, **{**self.settings, **changes})

    def test_record(self, tmp_path, whole):
        record = json.loads((tmp_path / "checkpoint-2" / "entropyfloor.json").read_text())
        assert record["loss"] == "sed"
        assert record["options"]["tau"] == whole.trainer.loss.tau
        whole.trainer.save_model(str(tmp_path / "final"))
        assert read_recorded_loss(tmp_path / "final") == whole.trainer.loss

    @pytest.mark.parametrize("as_what", [str, Path, lambda path: True])
    def test_tau_comes_from_the_checkpoint(self, tmp_path, whole, as_what):
        if as_what(tmp_path) is True:  # the last checkpoint; keep the one to resume from
            (tmp_path / "checkpoint-4").rename(tmp_path / "gone")
        trainer = self.again(tmp_path)
        resumed = Run.of(trainer, resume_from_checkpoint=as_what(tmp_path / "checkpoint-2"))
        assert trainer.loss == whole.trainer.loss
        assert resumed.series("loss") == whole.series("loss")

    def test_tau_comes_from_the_checkpoint_after_an_evaluation(self, tmp_path, whole):
        trainer = self.again(tmp_path)
        trainer.evaluate(prompt_completion_rows(3))
        assert trainer.loss != whole.trainer.loss  # calibrated on another model
        resumed = Run.of(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert trainer.loss == whole.trainer.loss
        assert resumed.series("loss") == whole.series("loss")

    @pytest.mark.parametrize(
        "changes",
        [{"lam": 1.0}, {"top_k": 4}, {"quantile": 0.5}, {"loss": "selective_entropy_bonus"}],
    )
    def test_another_loss_is_refused(self, tmp_path, whole, changes):
        trainer = self.again(tmp_path, **changes)
        with pytest.raises(ValueError, match=r"was trained with .* and this run asks for"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert trainer.state.global_step == 0

    def test_a_number_changes_tau_on_purpose(self, tmp_path, whole):
        trainer = self.again(tmp_path, tau=0.5)
        Run.of(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert trainer.loss.tau == 0.5

    def test_a_checkpoint_without_a_record(self, tmp_path, whole):
        (tmp_path / "checkpoint-2" / "entropyfloor.json").unlink()
        trainer = self.again(tmp_path)
        Run.of(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert isinstance(trainer.loss.tau, float)

    def test_a_record_of_another_version(self, tmp_path, whole):
        path = tmp_path / "checkpoint-2" / "entropyfloor.json"
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
        with pytest.raises(ValueError, match="has version 2 and this release reads 1"):
            self.again(tmp_path).train(resume_from_checkpoint=str(path.parent))


def test_the_record_of_every_kind_of_loss(tmp_path):
    loss = SelectiveEntropyLoss(lam=0.5, tau=0.25)
    write_run_record(tmp_path, loss)
    assert read_recorded_loss(tmp_path) == loss
    write_run_record(tmp_path, lambda statistics: -statistics.log_prob)
    assert json.loads((tmp_path / "entropyfloor.json").read_text())["loss"] == "custom:function"
    assert read_recorded_loss(tmp_path) is None
    assert read_recorded_loss(tmp_path / "nowhere") is None
