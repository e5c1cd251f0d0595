"""A trl that was not tested: what it computes is compared with ours before the first step."""

import logging

import pytest
import torch
from peft import LoraConfig
from sft_runs import Run, arguments, build, needs_sft_trainer, prompt_completion_rows, sed_trainer
from trl import SFTTrainer

from entropyfloor import SEDTrainer
from entropyfloor.sft import tested_versions, trl_agreement
from tiny_models import tiny_model

pytestmark = needs_sft_trainer
theirs = SFTTrainer.compute_loss


def halved(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return theirs(self, model, inputs, return_outputs, num_items_in_batch) / 2


def without_the_count(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return theirs(self, model, inputs, return_outputs)


def on_other_inputs(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """Scores the last label no more."""
    inputs["labels"] = torch.nn.functional.pad(inputs["labels"][:, :-1], (0, 1), value=-100)
    return theirs(self, model, inputs, return_outputs, num_items_in_batch)


@pytest.fixture
def future(monkeypatch):
    """Nothing was tested."""
    monkeypatch.setattr(tested_versions, "TESTED", {"1.10.0": ("5.15.0",)})
    monkeypatch.setattr(tested_versions, "version", lambda name: "1.99.0")


@pytest.mark.parametrize(
    ("imitated", "message"),
    [
        (halved, r"without a token count, is 2\.\d+ by SFTTrainer and 5\.\d+ by SEDTrainer"),
        (
            without_the_count,
            r"with a count of 55, is 5\.\d+ by SFTTrainer and 1\.\d+ by SED",
        ),
        (on_other_inputs, r"18 fixed tokens, .* is 5\.\d+ by SFTTrainer and 5\.\d+ by SEDTrainer"),
    ],
)
def test_a_trl_that_computes_something_else(tmp_path, monkeypatch, future, imitated, message):
    monkeypatch.setattr(SFTTrainer, "compute_loss", imitated)
    trainer = sed_trainer(tmp_path, loss="sed", tau=0.5)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=message) as refused:
        trainer.train()
    assert "Install a tested version (trl 1.10.0 with transformers 5.15.0)" in str(refused.value)
    assert trainer.state.global_step == 0
    assert all(value.equal(before[name]) for name, value in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("trainer", "config"),
    [
        ({}, {}),
        ({"peft_config": LoraConfig(r=4, target_modules="all-linear")}, {}),
        ({}, {"bf16": True, "gradient_accumulation_steps": 2}),
        ({}, {"tau": "auto", "average_tokens_across_devices": False}),
    ],
    ids=["full", "lora", "bf16", "calibrated"],
)
def test_one_that_agrees_leaves_no_trace(tmp_path, monkeypatch, caplog, trainer, config):
    """Dropout is on: the comparison may use up no random number."""
    given = {"model": tiny_model("gpt2"), "eval_dataset": prompt_completion_rows(4), **trainer}
    config = {"tau": 0.03, "eval_strategy": "steps", "eval_steps": 4, **config}
    monkeypatch.setattr(trl_agreement, "untested", lambda: None)
    known = Run.of(sed_trainer(tmp_path, trainer=dict(given), **config))
    monkeypatch.setattr(trl_agreement, "untested", lambda: "trl 1.99.0")
    given["model"] = tiny_model("gpt2")
    with caplog.at_level(logging.WARNING):
        new = Run.of(sed_trainer(tmp_path, trainer=given, **config))
    assert caplog.text.count("18 fixed tokens agrees with SFTTrainer's") == 1
    logged = set(known.steps[0]) | set(known.evaluations[0])
    pairs = zip(new.steps + new.evaluations, known.steps + known.evaluations, strict=True)
    for mine, other in pairs:
        for name in {n for n in logged if not n.endswith(("runtime", "per_second"))}:
            assert mine.get(name) == other.get(name), name


def test_what_cannot_be_compared_warns(tmp_path, monkeypatch, caplog, future):
    def moved(*_, **__):
        raise TypeError("compute_loss() takes a context now")

    monkeypatch.setattr(SFTTrainer, "compute_loss", moved)
    with caplog.at_level(logging.WARNING):
        sed_trainer(tmp_path, max_steps=1, tau=0.5).train()
    assert "cannot be compared with ours: TypeError: compute_loss() takes a context" in caplog.text


def test_unsloth_is_refused(tmp_path):
    class UnslothSFTTrainer(SEDTrainer):
        pass

    with pytest.raises(ValueError, match=r"Unsloth has replaced trl's SFTTrainer by .*patch_model"):
        build(UnslothSFTTrainer, arguments(tmp_path))


def test_an_older_trl_trains_no_mixture_of_experts(tmp_path, monkeypatch):
    monkeypatch.setattr(trl_agreement, "trl_version", "1.14.2")
    with pytest.raises(ValueError, match=r"trl 1\.14\.2 adds the balancing loss"):
        sed_trainer(tmp_path, trainer={"model": tiny_model("mixtral")})
