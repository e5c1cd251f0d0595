"""Tiny random models and a tokenizer, built locally in milliseconds, without a network."""

import copy
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 261  # 256 bytes and five special tokens: odd on purpose

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_MOE = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    # The attention cap is lowered with the logit cap so that both act on random weights.
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4, **_MOE},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, **_MOE},
}


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges, with a chat template that marks assistant tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(family: str = "llama", seed: int = 0, **overrides):
    """A random model of ``family`` in fp32, the same weights for the same seed."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SMALL, **FAMILIES[family], **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Wider weights than the default 0.02: distributions that are neither flat nor equal.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


def save_tiny(folder, family: str = "llama", seed: int = 0, *, peak: float = 1.0, **overrides):
    """A tiny model and its tokenizer as a checkpoint; a high ``peak`` gives low entropy."""
    model = tiny_model(family, seed, **overrides)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(peak)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_checkpoint(family: str = "llama", seed: int = 0, *, ends=1, **overrides):
    """A random model of ``family`` with a tokenizer of its own, as if it had been loaded."""
    from entropyfloor.models.checkpoints import LoadedCheckpoint

    model = tiny_model(family, seed, **overrides).eval()
    model.generation_config.eos_token_id = ends
    return LoadedCheckpoint("tiny", "path/of/tiny", model, copy.deepcopy(tiny_tokenizer()))


def drawn_from(checkpoint, encoded, samples, prompts=None, **sampling):
    """``{(prompt, sample): rollout}`` of some prompts, all of them by default."""
    from entropyfloor.rollouts.options import Sampling
    from entropyfloor.rollouts.rollouts import generate_rollouts

    chosen = range(len(encoded)) if prompts is None else prompts
    requests = [(prompt, sample) for prompt in chosen for sample in range(samples)]
    batches = generate_rollouts(checkpoint, encoded, requests, Sampling(**sampling))
    rollouts = {(r.prompt_index, r.sample_index): r for batch in batches for r in batch}
    assert sorted(rollouts) == requests
    return rollouts
