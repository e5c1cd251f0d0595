import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import context_length, dtype_record, load_checkpoint


def test_dtype_auto_computes_half_precision_in_float32_on_a_cpu(save_checkpoint):
    directory = save_checkpoint()
    assert load_checkpoint(directory).model.dtype == torch.float32
    for name in ("bfloat16", "float16"):
        half = load_checkpoint(directory, dtype=name).model
        assert half.dtype == getattr(torch, name)
        half.save_pretrained(directory)
        auto = load_checkpoint(directory, device="cpu").model
        assert {p.dtype for p in auto.parameters()} == {torch.float32}
        for own, stored in zip(auto.parameters(), half.parameters(), strict=True):
            assert torch.equal(own, stored.float())
        assert load_checkpoint(directory, dtype=name).model.dtype == half.dtype
    assert load_checkpoint(directory, dtype=torch.float32).model.dtype == torch.float32


def test_dtype_auto_keeps_float64_and_other_devices(save_checkpoint):
    directory = save_checkpoint()
    load_checkpoint(directory).model.double().save_pretrained(directory)
    assert load_checkpoint(directory).model.dtype == torch.float64
    load_checkpoint(directory).model.bfloat16().save_pretrained(directory)
    # No GPU is needed to see what another device would get: weights without values.
    assert load_checkpoint(directory, device="meta").model.dtype == torch.bfloat16


def test_the_record_says_so():
    assert dtype_record("auto", torch.device("cpu")) == "auto (half precision computed in float32)"
    assert dtype_record("auto", torch.device("cuda")) == "auto"
    assert dtype_record("bfloat16", torch.device("cpu")) == "bfloat16"
    assert dtype_record(torch.float16, torch.device("cuda")) == "float16"


def test_loaded_for_evaluation(save_checkpoint):
    loaded = load_checkpoint(save_checkpoint("some"))
    assert not loaded.model.training
    assert loaded.name == "some"
    assert loaded.eos_token_ids == (1,)
    assert loaded.pads


def test_a_folder_with_a_model_and_checkpoints_is_the_model(save_checkpoint):
    directory = save_checkpoint("run")
    save_checkpoint("run/checkpoint-1", seed=1)
    assert load_checkpoint(directory).path == str(directory)


def test_missing_weights_are_not_filled_with_random_numbers(save_checkpoint):
    directory = save_checkpoint()
    weights = load_file(directory / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its model's weights, model.norm.weight"):
        load_checkpoint(directory)


def test_weights_of_another_shape(save_checkpoint):
    directory = save_checkpoint()
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 99}))
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        load_checkpoint(directory)


def test_no_tokenizer(save_checkpoint):
    with pytest.raises(ValueError, match=r"no tokenizer that can be loaded .* save it beside"):
        load_checkpoint(save_checkpoint(tokenizer=False))


def test_unknown_dtype_and_device(save_checkpoint):
    directory = save_checkpoint()
    with pytest.raises(ValueError, match="unknown dtype 'int8'; give auto, float32"):
        load_checkpoint(directory, dtype="int8")
    with pytest.raises(ValueError, match="device 'warp' cannot be used here"):
        load_checkpoint(directory, device="warp")


def test_context_length(save_checkpoint):
    assert context_length(check_checkpoint(save_checkpoint("a"))) == 256
    assert context_length(check_checkpoint(save_checkpoint("b", "gpt2"))) == 256


def test_generating_puts_back_what_it_changes(save_checkpoint):
    loaded = load_checkpoint(save_checkpoint("moe", "mixtral"))
    own, defaults = loaded.model.generation_config, GenerationConfig(eos_token_id=1)
    assert loaded.model.config.output_router_logits
    with pytest.raises(KeyError), loaded.generating(defaults):
        assert loaded.model.generation_config is defaults
        assert not loaded.model.config.output_router_logits
        raise KeyError
    assert loaded.model.generation_config is own
    assert loaded.model.config.output_router_logits
