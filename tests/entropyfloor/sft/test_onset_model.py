"""OnsetModel: the model of one moment, whatever has happened to it since."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from entropyfloor.sft.floor.reference_model import OnsetModel
from tiny_models import tiny_model

IDS = torch.tensor([[5, 9, 20, 7], [3, 3, 8, 1]])


def changed(model):
    """Every trainable parameter moves."""
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.1)


def lora():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)
    model = get_peft_model(tiny_model(), config)
    changed(model)  # adapters begin as zero
    return model


@pytest.mark.parametrize("make", [tiny_model, lora])
def test_the_base_stays_what_it_was(make):
    model = make().train()
    base = OnsetModel(model)
    assert not base.captured
    base.capture()
    with torch.no_grad():
        then = copy.deepcopy(model).eval()(IDS).logits
    changed(model)
    now = {name: value.clone() for name, value in model.named_parameters()}
    found = base(IDS, input_ids=IDS)
    logits = nn.functional.linear(found.hidden, found.weight, found.bias)
    torch.testing.assert_close(logits, then)
    assert not found.hidden.requires_grad and not found.weight.requires_grad
    assert all(value.equal(now[name]) for name, value in model.named_parameters())
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        assert not torch.allclose(copy.deepcopy(model).eval()(IDS).logits, then, atol=1e-3)


def test_a_call_under_autocast_leaves_no_cast_of_the_base_behind():
    model = tiny_model()
    base = OnsetModel(model)
    base.capture()
    changed(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base(IDS, input_ids=IDS)
        assert model(IDS).logits.equal(wanted)


def test_only_what_is_trained_is_held():
    model = lora()
    base = OnsetModel(model)
    base.capture()
    assert base._snapshot and all(".lora_" in name for name in base._snapshot)


def test_saved_and_loaded(tmp_path):
    model = tiny_model()
    first = OnsetModel(model)
    first.save(tmp_path)
    assert not (tmp_path / OnsetModel.file_name).exists()
    first.capture()
    first.save(tmp_path)
    wanted = first(IDS, input_ids=IDS).hidden
    changed(model)
    second = OnsetModel(model)
    second.load(tmp_path)
    assert second(IDS, input_ids=IDS).hidden.equal(wanted)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is missing"):
        OnsetModel(tiny_model()).load(tmp_path)
    other = OnsetModel(lora())
    other.capture()
    other.save(tmp_path)
    with pytest.raises(ValueError, match="is of another model"):
        OnsetModel(tiny_model()).load(tmp_path)
