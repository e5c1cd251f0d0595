"""Soft cap and scale are read off a config as the family's own forward applies them."""

import math

import pytest
import torch
from transformers import AutoConfig, Gemma3Config, PretrainedConfig

from entropyfloor.models.lm_head import head_options
from tiny_models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_logits(family):
    model = tiny_model(family).double().eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the grouped product has no fp64
    input_ids = torch.arange(5, 25).unsqueeze(0)
    options = head_options(model.config)
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    z = hidden @ model.get_output_embeddings().weight.T * options["logit_scale"]
    if options["softcap"] is not None:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    logits = model(input_ids=input_ids, use_cache=False).logits
    torch.testing.assert_close(z, logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "softcap", "scale"),
    [("llama", None, 1.0), ("gemma2", 0.5, 1.0), ("cohere", None, 0.25), ("granite", None, 0.25)],
)
def test_values(family, softcap, scale):
    assert head_options(tiny_model(family).config) == {"softcap": softcap, "logit_scale": scale}


@pytest.mark.parametrize(
    ("model_type", "name", "value", "scale"),
    [
        ("falcon_h1", "lm_head_multiplier", 0.5, 0.5),
        ("minicpm3", "logits_scaling", 4.0, 0.25),
        ("hyperclovax", "logits_scaling", 4.0, 4.0),
        ("muse_glimmer", "output_multiplier", 0.125, 0.125),
        ("mpt", "logit_scale", None, 1.0),
    ],
)
def test_other_names_of_the_scale(model_type, name, value, scale):
    config = PretrainedConfig(**{name: value})
    config.model_type = model_type
    assert math.isclose(head_options(config)["logit_scale"], scale)


def test_a_multimodal_config_is_read_at_its_text_part():
    config = Gemma3Config(text_config={"final_logit_softcapping": 7.0})
    assert head_options(config)["softcap"] == 7.0


def test_a_config_without_any_of_it():
    assert head_options(AutoConfig.for_model("opt")) == {"softcap": None, "logit_scale": 1.0}
