"""SEDConfig: what it takes, what it refuses, and that a converted config loses nothing."""

import json
from dataclasses import dataclass, fields

import pytest
from sft_runs import arguments
from transformers import TrainingArguments
from trl import SFTConfig

from entropyfloor import SEDConfig
from entropyfloor_losses import (
    LOSS_NAMES,
    BoundedProbabilityLoss,
    CrossEntropyLoss,
    EntropyBonusLoss,
    GEMLoss,
    SelectiveEntropyLoss,
)


def config(tmp_path, **given):
    return arguments(tmp_path, SEDConfig, **given)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_has_a_name(tmp_path, name):
    assert config(tmp_path, loss=name).build_loss() is not None


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({}, SelectiveEntropyLoss()),
        ({"lam": 2.0, "top_k": 4, "tau": 0.5}, SelectiveEntropyLoss(lam=2.0, top_k=4, tau=0.5)),
        ({"tau": "0.5"}, SelectiveEntropyLoss(tau=0.5)),
        ({"tau": "auto", "quantile": 0.1}, SelectiveEntropyLoss(quantile=0.1)),
        ({"loss": "ce", "smoothing": 0.1}, CrossEntropyLoss(smoothing=0.1)),
        ({"loss": "dcr", "tau": 0.1}, BoundedProbabilityLoss(tau=0.1)),
        ({"loss": "dft"}, BoundedProbabilityLoss(tau=float("inf"))),
        ({"loss": "gem", "beta": 0.5}, GEMLoss(beta=0.5)),
        ({"loss": "entropy_bonus", "lam": 0.2}, EntropyBonusLoss(lam=0.2)),
        (
            {"loss": "selective_entropy_bonus", "tau": 0.9},
            EntropyBonusLoss(selective=True, tau=0.9),
        ),
    ],
)
def test_options_reach_the_loss(tmp_path, given, loss):
    assert config(tmp_path, **given).build_loss() == loss


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(0.1),
        SelectiveEntropyLoss(lam=3.0, tau=0.7),
        BoundedProbabilityLoss(float("inf")),
        GEMLoss(0.3),
        EntropyBonusLoss(0.4),
        EntropyBonusLoss(0.4, selective=True),
    ],
)
def test_an_object_is_its_name_and_options(tmp_path, loss):
    given = config(tmp_path, loss=loss)
    assert isinstance(given.loss, str)
    assert given.build_loss() == loss
    assert SEDConfig.from_arguments(given).build_loss() == loss
    json.dumps(given.to_dict(), allow_nan=True)  # what reporting callbacks do with a config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "sedd"}, "unknown loss 'sedd'; choose one of ce, sed"),
        ({"lam": -1.0}, "lam is -1.0; it must be a finite number >= 0"),
        ({"tau": 0.0}, 'tau is 0.0; it must be "auto" or a number in'),
        ({"tau": "often"}, "tau is 'often'; it must be \"auto\" or a number"),
        ({"top_k": 0}, "top_k is 0; it must be an integer >= 1"),
        ({"loss": "dcr", "tau": "auto"}, "tau is 'auto'; it must be >= 0"),
        ({"loss": "ce", "lam": 1.0}, "loss 'ce' does not take 'lam'; it takes smoothing"),
        ({"loss": "dft", "tau": 0.5}, "loss 'dft' does not take 'tau'; it takes no options"),
        ({"loss": GEMLoss(), "beta": 0.5}, "loss is an object and beta set beside it"),
        ({"loss": lambda s: -s.log_prob}, r"pass your own losses to SEDTrainer\(loss=...\)"),
        ({"calibration_rows": 0}, "calibration_rows is 0; it must be an integer >= 1"),
        ({"label_smoothing_factor": 0.1}, r'SEDConfig\(loss="ce", smoothing=0.1\)'),
        ({"loss_type": "dft"}, r"SEDConfig\(loss='dft'\)"),
    ],
)
def test_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **given)


def differences(converted, original):
    return {
        f.name: (getattr(original, f.name), getattr(converted, f.name))
        for f in fields(original)
        if getattr(converted, f.name) != getattr(original, f.name)
        and f.name not in {"accelerator_config", "distributed_state"}
    }


CUSTOM = {
    "eos_token": "<|end|>",
    "pad_token": "<|pad|>",
    "hub_token": "hf_not_a_token",
    "chat_template_path": "template.jinja",
    "packing": True,
    "packing_strategy": "wrapped",
    "max_length": 77,
    "assistant_only_loss": True,
    "completion_only_loss": False,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "eval_strategy": "steps",
    "eval_steps": 3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 1},
    "warmup_steps": 0.1,
    "optim": "adamw_torch",
    "optim_args": "foreach=False",
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "router_aux_loss_coef": 0.3,
    "seed": 7,
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 3,
    "accelerator_config": {"split_batches": True, "dispatch_batches": False},
    "save_strategy": "epoch",
    "report_to": "none",
}


@pytest.mark.parametrize(
    "original",
    [
        lambda folder: arguments(folder, SFTConfig, **CUSTOM),
        lambda folder: SFTConfig(use_cpu=True),
        lambda folder: TrainingArguments(str(folder), use_cpu=True, hub_token="hf", report_to=[]),
        lambda folder: config(folder, **CUSTOM, loss="dcr", tau=0.2),
    ],
    ids=["SFTConfig", "defaults", "TrainingArguments", "SEDConfig"],
)
def test_a_converted_config_keeps_every_field(tmp_path, original):
    original = original(tmp_path)
    converted = SEDConfig.from_arguments(original)
    assert differences(converted, original) == {}
    assert converted.accelerator_config.to_dict() == original.accelerator_config.to_dict()
    assert converted.loss == getattr(original, "loss", "sed")


def test_own_subclass_of_sft_config_says_what_to_do(tmp_path):
    @dataclass
    class Mine(SFTConfig):
        colour: str = "blue"

    with pytest.raises(ValueError, match="derive Mine from SEDConfig"):
        SEDConfig.from_arguments(arguments(tmp_path, Mine))
