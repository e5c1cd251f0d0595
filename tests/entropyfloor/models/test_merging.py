import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import load_checkpoint
from entropyfloor.models.interpolation import write_interpolated
from entropyfloor.models.merging import merged_directory
from tiny_models import save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 7, 11, 5, 9]])


def logits(directory):
    model = load_checkpoint(directory, dtype="float32").model
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def base(tmp_path):
    model = tiny_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base, config):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.3)
    model.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "down_proj"], ["q_proj", "embed_tokens"], ["embed_tokens", "lm_head"]],
)
def test_the_merged_model_computes_what_the_adapter_did(base, tmp_path, targets):
    checkpoint = adapter(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    merged = merged_directory(checkpoint, tmp_path / "merged")
    assert merged == tmp_path / "merged" and (merged / "model.safetensors").is_file()
    assert not (merged / "adapter_config.json").exists()
    torch.testing.assert_close(logits(merged), logits(checkpoint), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(merged), logits(base), atol=1e-2)


def test_a_whole_model_is_returned_as_it_is(base, tmp_path):
    assert merged_directory(base, tmp_path / "merged") == base
    assert not (tmp_path / "merged").exists()


def test_a_tied_head_is_interpolated_once(base, tmp_path):
    trained = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for value in trained.parameters():
            value.mul_(1.5)
    trained.save_pretrained(tmp_path / "trained")
    tiny_tokenizer().save_pretrained(tmp_path / "trained")
    ends = [check_checkpoint(tmp_path / "trained"), check_checkpoint(base)]
    write_interpolated(*ends, 0.25, tmp_path / "between")
    between, *ends = (load_checkpoint(d).model for d in (tmp_path / "between", *ends))
    assert between.lm_head.weight is between.get_input_embeddings().weight
    parameters = (model.parameters() for model in (between, *ends))
    for value, of_trained, of_base in zip(*parameters, strict=True):
        torch.testing.assert_close(value, 0.75 * of_trained + 0.25 * of_base)


def test_trained_biases_are_interpolated_with_the_bases_own(tmp_path):
    """``bias="all"`` trains biases beside the factors, in LoRA's layers and in others."""
    base = save_tiny(tmp_path / "base", "qwen2")
    config = LoraConfig(r=2, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    model = get_peft_model(load_checkpoint(base).model, config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.1)
    model.save_pretrained(tmp_path / "adapter")
    write_interpolated(
        check_checkpoint(tmp_path / "adapter"), check_checkpoint(base), 0.25, tmp_path / "between"
    )
    between, trained = (
        load_checkpoint(tmp_path / name).model.merge_and_unload().state_dict()
        for name in ("between", "adapter")
    )
    for name, value in load_checkpoint(base).model.state_dict().items():
        torch.testing.assert_close(between[name], torch.lerp(trained[name], value, 0.25))
    assert not between["model.layers.0.self_attn.q_proj.bias"].equal(
        trained["model.layers.0.self_attn.q_proj.bias"]
    )


def test_prompt_learning_is_refused(base, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="prompt-learning"):
        merged_directory(adapter(base, config), tmp_path / "merged")
