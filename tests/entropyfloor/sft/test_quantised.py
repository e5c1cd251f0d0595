"""QLoRA: on a base of four bits a run is that of the same base written out; `make test-sharded`.

The written-out base has the values that the quantised one stands for, and its adapters are in bf16,
as trl's are on a quantised one. bitsandbytes is in the environment of ``make test-sharded``.
"""

from importlib.util import find_spec

import pytest
import torch
from sft_runs import Run, arguments, assert_same_run, build, needs_sft_trainer, sed_trainer_with_ce
from sharded_run import OBJECTIVES, largest, logged, lora, trainer_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTTrainer

from tiny_models import tiny_model

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="without bitsandbytes")

CELLS = [f"{name}-lora" for name in OBJECTIVES if name not in ("auto", "given")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


def four_bits(saved):
    return AutoModelForCausalLM.from_pretrained(
        saved,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )


def written_out(saved):
    """The same values as plain matrices."""
    return four_bits(saved).dequantize().float()


def train(trainer):
    trainer.train()
    return logged(trainer)


def bf16_adapters(trainer):
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return trainer


@pytest.mark.parametrize("cell", CELLS)
def test_as_on_the_same_base_written_out(saved, tmp_path, cell):
    plain = {"save_strategy": "no", "max_steps": 4}
    makers = {"four_bits": four_bits, "written_out": written_out}
    trainers = {
        name: trainer_of(cell, "one", tmp_path / name, 1, model=make(saved), **plain)
        for name, make in makers.items()
    }
    ours, theirs = (train(bf16_adapters(trainer)) for trainer in trainers.values())
    assert trainers["four_bits"].model.get_base_model().is_loaded_in_4bit
    assert all(step["grad_norm"] > 0 for step in ours)
    # The first step is fp32's; afterwards an update that rounds otherwise to bf16 is a step of it.
    assert largest(ours[:1], theirs[:1]) < 1e-5
    assert largest(ours, theirs) < 5e-3


@needs_sft_trainer
def test_cross_entropy_is_trls(saved, tmp_path):
    settings = arguments(tmp_path, learning_rate=1.0)
    ours, theirs = (
        Run.of(build(trainer, settings, model=four_bits(saved), peft_config=lora()))
        for trainer in (sed_trainer_with_ce, SFTTrainer)
    )
    assert_same_run(ours, theirs, others=1e-2)


def test_a_quantised_head_is_refused(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        saved,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[]),
    )
    if model.lm_head.weight.is_floating_point():
        pytest.skip("this transformers leaves the head whole whatever it is told")
    with pytest.raises(ValueError, match="out of the quantisation"):
        trainer_of("ce-lora", "one", tmp_path, 1, model=model)
