"""What would silently drop or break the chosen loss is refused before a step is computed."""

import types

import pytest
import torch
from peft import CPTConfig, LoraConfig, get_peft_model
from sft_runs import arguments, build, prompt_completion_rows, sed_trainer
from trl import SFTConfig, SFTTrainer

from entropyfloor import EntropyFloorCallback, SEDConfig, SEDTrainer, patch_model
from entropyfloor.models.model_state import WholeCopy
from entropyfloor.sft.loss_reference import LossReference
from entropyfloor_losses import SelectiveEntropyLoss
from tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("config", "trainer", "message"),
    [
        ({"lam": 0.5}, {"loss": "ce"}, "loss 'ce' does not take 'lam'; it takes smoothing"),
        ({"lam": 0.5}, {"loss": SelectiveEntropyLoss()}, "lam beside it would have no effect"),
        ({"top_k": 262}, {}, "top_k is 262, more than the vocabulary of 261 tokens"),
        ({}, {"compute_loss_func": lambda *a, **k: 0}, "compute_loss_func would replace"),
    ],
)
def test_refused_by_the_trainer(tmp_path, config, trainer, message):
    with pytest.raises(ValueError, match=message):
        sed_trainer(tmp_path, trainer=trainer, **config)


def test_positional_compute_loss_func(tmp_path):
    positional = (None, prompt_completion_rows(), None, tiny_tokenizer())
    with pytest.raises(ValueError, match="compute_loss_func would replace the chosen loss"):
        SEDTrainer(tiny_model(), arguments(tmp_path), *positional, lambda *a, **k: 0)
    SEDTrainer(tiny_model(), arguments(tmp_path), *positional, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss_type", "dft", r"Leave loss_type out and use SEDConfig\(loss='dft'\)"),
        ("label_smoothing_factor", 0.1, r'Use SEDConfig\(loss="ce", smoothing=0.1\)'),
    ],
)
def test_what_would_replace_the_loss(tmp_path, name, value, message):
    """In trl's config, or assigned to ours later, past its checks."""
    later = arguments(tmp_path, SEDConfig)
    setattr(later, name, value)
    for args in (arguments(tmp_path, SFTConfig, **{name: value}), later):
        with pytest.raises(ValueError, match=message):
            build(SEDTrainer, args)


def test_adapter_on_the_head(tmp_path):
    with pytest.raises(ValueError, match=r"`lm_head`.* PEFT adapter|PEFT adapter to `lm_head`"):
        build(
            SEDTrainer,
            arguments(tmp_path),
            peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]),
        )


@pytest.mark.parametrize("head", [None, torch.nn.Identity()])
def test_a_model_without_a_plain_head(tmp_path, monkeypatch, head):
    model = tiny_model()
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: head)
    with pytest.raises(ValueError, match=r"no plain weight matrix.*modules_to_save=\['lm_head'\]"):
        build(SEDTrainer, arguments(tmp_path), model=model)


def test_a_quantised_head(tmp_path):
    model = tiny_model()
    packed = torch.zeros(16, 1, dtype=torch.uint8)
    model.lm_head.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match="out of the quantisation"):
        build(SEDTrainer, arguments(tmp_path), model=model)


def test_a_peft_model_is_taken_as_it_is(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    trainer = build(SEDTrainer, arguments(tmp_path, max_steps=1), model=model, loss="ce")
    trainer.train()
    assert trainer.state.log_history[0]["ce"] > 0


def test_an_adapter_that_computes_a_loss_of_its_own(tmp_path):
    cpt = CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[3, 4, 5],
        cpt_mask=[1, 1, 1],
        cpt_tokens_type_mask=[1, 2, 4],
    )
    with pytest.raises(ValueError, match=r"CPT computes a loss of its own.*Use LoRA"):
        build(SEDTrainer, arguments(tmp_path), model=get_peft_model(tiny_model(), cpt))


@pytest.mark.parametrize(
    ("parallelism", "message"),
    [
        ({"sp_enabled": True}, r"sequence parallelism.*Leave sp_size out: FSDP2"),
        ({"cp_enabled": True}, r"context parallelism.*Leave cp_size out: FSDP2"),
        ({"tp_size": 2}, r"tensor parallelism.*without tp_plan, tp_size or autotp_size: FSDP2"),
    ],
)
def test_parallelism(tmp_path, monkeypatch, parallelism, message):
    """Mocked: it needs DeepSpeed, or several accelerators."""
    accelerator = types.SimpleNamespace(parallelism_config=types.SimpleNamespace(**parallelism))

    def sft_trainer(self, model, *args, **kwargs):
        self.model, self.accelerator, self.is_deepspeed_enabled = model, accelerator, False

    monkeypatch.setattr(SFTTrainer, "__init__", sft_trainer)
    with pytest.raises(ValueError, match=message):
        build(SEDTrainer, arguments(tmp_path))
    trainer = types.SimpleNamespace(accelerator=accelerator)
    callback = EntropyFloorCallback(patch_model(tiny_model(), "ce"))
    with pytest.raises(ValueError, match=message):
        callback.prepare(trainer=trainer)  # as GFTTrainer does, and transformers' Trainer


def under(*, fsdp: int | None = None, **zero):
    """What is asked of a trainer whose model FSDP or DeepSpeed take over."""
    plugins = types.SimpleNamespace(
        fsdp_plugin=types.SimpleNamespace(fsdp_version=fsdp),
        deepspeed_plugin=types.SimpleNamespace(deepspeed_config={"zero_optimization": zero}),
    )
    return types.SimpleNamespace(
        is_fsdp_enabled=fsdp is not None,
        is_deepspeed_enabled=fsdp is None,
        accelerator=types.SimpleNamespace(state=plugins),
    )


@pytest.mark.parametrize(
    ("trainer", "config", "message"),
    [
        (under(fsdp=1), {}, "cannot be exchanged under FSDP1. Use FSDP2"),
        (under(fsdp=2), {"reference_cache": "cache"}, "reference_cache is filled before"),
        (under(stage=3, offload_param={"device": "nvme"}), {}, "keeps them on NVMe"),
        (under(stage=3, zero_hpz_partition_size=8), {}, "or a second time"),
        (under(fsdp=2), {"loss": "tail"}, "loss 'tail' reads its reference from a cache"),
    ],
)
def test_references_that_sharding_makes_impossible(tmp_path, trainer, config, message):
    options = arguments(tmp_path, SEDConfig, **{"loss": "gift", **config})
    head = patch_model(tiny_model(), options.build_loss())
    with pytest.raises(ValueError, match=message):
        LossReference(head, options, head.model, trainer)
    with pytest.raises(ValueError, match=r"cannot be made .* quantised: leave the probe out"):
        model = tiny_model()
        model.is_quantized = True
        WholeCopy(model)


def test_nothing_is_computed_before_a_refusal(tmp_path, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("the model was called"))
    monkeypatch.setattr(
        SEDTrainer, "_prepare_dataset", lambda *a, **k: pytest.fail("the data was prepared")
    )
    for loss, config in (("nonsense", {}), ("ce", {"lam": 1.0})):
        with pytest.raises(ValueError, match="loss"):
            sed_trainer(tmp_path, trainer={"model": model, "loss": loss}, **config)
