"""What SEDTrainer saved computes, loaded for screening, what the trained model computed."""

import copy

import pytest
import torch
from peft import LoraConfig
from sft_runs import arguments, prompt_completion_rows
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from entropyfloor import SEDConfig, SEDTrainer
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import load_checkpoint, vocabulary_size
from entropyfloor.models.interpolation import check_same_shapes, write_interpolated
from entropyfloor.models.lm_head import final_logits
from entropyfloor.models.merging import merged_directory
from entropyfloor.rollouts.prompts import PromptSet
from flat_calls import screen
from tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

IDS = torch.arange(5, 40)[None]
PROMPTS = PromptSet(({"prompt": "1+1=", "completion": "2"}, {"prompt": "2+1=", "completion": "3"}))
BOTH, NEW = ["embed_tokens", "lm_head"], [VOCABULARY, VOCABULARY + 1]


def trained(model, tokenizer, folder, **lora):
    """Two steps of SEDTrainer, saved into ``folder``; the logits of the trained model."""
    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
    trainer = SEDTrainer(
        model,
        args=arguments(folder.parent / "run", SEDConfig, loss="sed", max_steps=2),
        train_dataset=prompt_completion_rows(8),
        processing_class=tokenizer,
        peft_config=config if lora else None,
    )
    trainer.train()
    trainer.save_model(str(folder))
    inner = trainer.model.eval()
    with torch.no_grad():
        return inner(input_ids=IDS, use_cache=False).logits


def loaded_logits(directory):
    with torch.no_grad():
        return load_checkpoint(directory, device="cpu").model(input_ids=IDS).logits


# name: (new tokens, padded to, rows cut to, LoRA's options, rescue's answer)
ADAPTERS = {
    "plain": (0, None, None, {}, None),
    "new tokens": (2, None, None, {}, "training resized them"),
    "padded": (2, 64, None, {}, "training resized them"),
    "shrunk": (0, None, VOCABULARY - 5, {}, "training resized them"),
    "padded, saved whole": (2, 64, None, {"modules_to_save": BOTH}, "training resized them"),
    "saved whole": (0, None, None, {"modules_to_save": ["lm_head"]}, None),
    "trained tokens": (0, None, None, {"trainable_token_indices": [7, 8]}, "no plain LoRA"),
    "padded, trained tokens": (2, 64, None, {"trainable_token_indices": NEW}, "training resized"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter(tmp_path, name, tied):
    new, multiple, cut, lora, refusal = ADAPTERS[name]
    base = tmp_path / "base"
    tiny_model(tie_word_embeddings=tied).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([f"<|new{n}|>" for n in range(new)])
    if new or multiple or cut:
        model.resize_token_embeddings(cut or len(tokenizer), pad_to_multiple_of=multiple)
    folder = tmp_path / "adapter"
    expected = trained(model, tokenizer, folder, **{"target_modules": ["q_proj"], **lora})

    source = check_checkpoint(folder)
    assert vocabulary_size(source) == expected.shape[-1]
    torch.testing.assert_close(loaded_logits(folder), expected, rtol=1e-4, atol=1e-5)
    merged = merged_directory(folder, tmp_path / "merged")
    torch.testing.assert_close(loaded_logits(merged), expected, rtol=1e-4, atol=1e-5)
    if refusal is None:
        write_interpolated(source, check_checkpoint(base), 0.0, tmp_path / "same")
        torch.testing.assert_close(loaded_logits(tmp_path / "same"), expected, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match=refusal):
            check_same_shapes(source, check_checkpoint(base))


def test_new_rows_of_a_head_that_were_not_saved_are_not_made_up(tmp_path):
    """PEFT stores the embeddings that an adapter is on, and not the untied head beside them."""
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(320)
    lora = {"target_modules": ["q_proj", "embed_tokens"]}
    trained(model, tiny_tokenizer(), tmp_path / "adapter", **lora)
    with pytest.raises(ValueError, match=r"not the rows of lm_head.*Give the merged model"):
        load_checkpoint(tmp_path / "adapter")


TEXT = {
    "vocab_size": VOCABULARY + 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
SEES |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
VISION_LANGUAGE = {
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {
            **{"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
            **{"out_hidden_size": 32, "patch_size": 14, "fullatt_block_indexes": [0]},
        },
        **{"image_token_id": VOCABULARY, "video_token_id": VOCABULARY + 1},
        "vision_start_token_id": VOCABULARY + 2,
    },
    "gemma3": {
        "text_config": TEXT,
        "vision_config": SEES,
        "mm_tokens_per_image": 4,
        **{"image_token_index": VOCABULARY, "boi_token_index": VOCABULARY + 1},
        "eoi_token_index": VOCABULARY + 2,
    },
    "smolvlm": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": SEES,
        "image_token_id": VOCABULARY,
    },
}


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["q_proj"]}], ids=["whole", "lora"])
@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_a_vision_language_model_that_was_trained_on_text(tmp_path, family, lora):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **VISION_LANGUAGE[family])
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    folder = tmp_path / "trained"
    expected = trained(model, tiny_tokenizer(), folder, **lora)

    torch.testing.assert_close(loaded_logits(folder), expected, rtol=1e-4, atol=1e-5)
    inner = load_checkpoint(folder, device="cpu").inner_model
    with torch.no_grad():
        hidden = inner.base_model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(final_logits(inner, hidden), expected, rtol=1e-4, atol=1e-5)
    report = screen(
        [folder], prompts=PROMPTS, num_samples=2, max_new_tokens=3, device="cpu", progress=False
    )
    assert report.checkpoints[0].held_out_loss > 0
