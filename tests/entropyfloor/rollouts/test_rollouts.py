import copy
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy import stats
from transformers import AutoConfig, GenerationConfig
from transformers.cache_utils import DynamicLayer

from entropyfloor.models.checkpoints import load_checkpoint
from entropyfloor.rollouts.decoding import RoomyLayer, reads_keys_and_values, room_for
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.rollouts import check_lengths
from tiny_models import FAMILIES, VOCABULARY, drawn_from, tiny_checkpoint, tiny_tokenizer

PROMPTS = PromptSet(
    tuple({"prompt": text} for text in ["1+2=", "a", "12+34+56=", "bcdef: 7-", "0", "99-1=#"])
)


# Enough end-of-sequence tokens that random models end at different lengths.
ENDS = [1, *range(20, 60)]


def checkpoint(family="llama", *, ends=ENDS):
    return tiny_checkpoint(family, ends=ends)


def rollouts_of(checkpoint, prompts=PROMPTS, samples=3, **settings):
    encoded = encode_prompts(prompts, checkpoint.tokenizer, where=checkpoint.name)
    return drawn_from(checkpoint, encoded, samples, **{"max_new_tokens": 10, **settings})


def tokens(rollouts):
    return {key: rollout.token_ids for key, rollout in rollouts.items()}


@torch.no_grad()
def teacher_forced_entropies(model, prompt_ids, token_ids):
    """Entropy where each token was drawn: one forward pass, no cache, no padding, fp64 softmax."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    # From the end: prompt tuning puts virtual tokens before the prompt.
    logits = model(ids).logits[0, -len(token_ids) - 1 : -1].double()
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("warped", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_entropy_equals_brute_force(family, warped):
    loaded = checkpoint(family)
    encoded = encode_prompts(PROMPTS, loaded.tokenizer, where="tiny")
    found = rollouts_of(loaded, batch_size=5, **warped)
    for (prompt, _), rollout in found.items():
        reference = teacher_forced_entropies(loaded.model, encoded[prompt], rollout.token_ids)
        assert rollout.entropies_nats == pytest.approx(reference, abs=1e-5)
    lengths = {len(rollout.token_ids) for rollout in found.values()}
    assert len(lengths) > 1, "the test needs rollouts that end at different steps"


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_do_not_depend_on_the_batch(family):
    loaded = checkpoint(family)
    alone = rollouts_of(loaded, batch_size=1)
    for batch_size in (3, 16):
        check_same(alone, rollouts_of(loaded, batch_size=batch_size))


def test_more_samples_and_tokens_extend_what_was_drawn():
    loaded = checkpoint()
    short = rollouts_of(loaded, samples=2, max_new_tokens=4)
    longer = rollouts_of(loaded, samples=3, max_new_tokens=9)
    for key, rollout in short.items():
        assert longer[key].token_ids[: len(rollout.token_ids)] == rollout.token_ids


def test_seed_changes_rollouts():
    loaded = checkpoint()
    first, second = rollouts_of(loaded, seed=0), rollouts_of(loaded, seed=1)
    assert any(first[key].token_ids != second[key].token_ids for key in first)


def test_first_tokens_follow_softmax():
    loaded = checkpoint()
    prompts = PromptSet(({"prompt": "1+2="},))
    found = rollouts_of(loaded, prompts, samples=4000, max_new_tokens=1, batch_size=1000)
    counts = np.bincount([r.token_ids[0] for r in found.values()], minlength=VOCABULARY)
    ids = torch.tensor([loaded.tokenizer("1+2=")["input_ids"]])
    with torch.no_grad():
        expected = loaded.model(ids).logits[0, -1].double().softmax(-1).numpy() * 4000
    # Tokens expected fewer than five times are counted together, or chi-square is no approximation.
    rare = expected < 5
    observed = [*counts[~rare], counts[rare].sum()]
    assert stats.chisquare(observed, [*expected[~rare], expected[rare].sum()]).pvalue > 0.01


def test_top_k_one_is_greedy():
    loaded = checkpoint()
    found = rollouts_of(loaded, samples=2, top_k=1)
    ids = torch.tensor([loaded.tokenizer("1+2=")["input_ids"]])
    greedy = loaded.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    assert found[0, 0].token_ids == found[0, 1].token_ids == tuple(greedy.tolist())


def test_every_end_of_sequence_token_ends():
    loaded = checkpoint(ends=list(range(100, 140)))
    assert loaded.eos_token_ids == (*range(100, 140), 1)
    ends = set(loaded.eos_token_ids)
    seen = set()
    for rollout in rollouts_of(loaded, samples=16).values():
        assert not ends & set(rollout.token_ids[:-1])
        assert rollout.truncated == (rollout.token_ids[-1] not in ends)
        assert rollout.truncated <= (len(rollout.token_ids) == 10)
        assert len(rollout.entropies_nats) == len(rollout.token_ids)
        seen |= ends & set(rollout.token_ids)
    assert len(seen) > 5


def test_without_any_end_of_sequence_token_all_are_truncated():
    loaded = checkpoint(ends=None)
    loaded.tokenizer.eos_token = None
    assert loaded.eos_token_ids == ()
    found = rollouts_of(loaded)
    assert all(r.truncated and len(r.token_ids) == 10 for r in found.values())


def test_a_tokenizer_without_pad_token():
    padded, bare = checkpoint(), checkpoint()
    bare.tokenizer.pad_token = None
    assert bare.pad_token_id != padded.pad_token_id
    assert tokens(rollouts_of(padded)) == tokens(rollouts_of(bare))


def test_the_models_own_generation_config_adds_nothing():
    plain = rollouts_of(checkpoint())
    loaded = checkpoint()
    own = GenerationConfig(
        eos_token_id=ENDS,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[4, 5, 6],
        min_new_tokens=9,
        temperature=0.1,
        top_k=2,
        do_sample=True,
        num_beams=3,
        max_length=3,
    )
    loaded.model.generation_config = own
    found = rollouts_of(loaded)
    assert tokens(found) == tokens(plain)
    assert loaded.model.generation_config is own


def test_nan_logits_name_the_checkpoint():
    loaded = checkpoint()
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(ValueError, match="path/of/tiny gave logits that are NaN or infinite"):
        rollouts_of(loaded)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["lora", "prompt tuning"],
)
def test_adapters_roll_out_as_brute_force_says(config, tmp_path, save_checkpoint):
    base = save_checkpoint("base")
    torch.manual_seed(5)
    peft_model = get_peft_model(load_checkpoint(base).model, config)
    peft_model.peft_config["default"].base_model_name_or_path = str(base)
    peft_model.save_pretrained(tmp_path / "adapter")
    loaded = load_checkpoint(tmp_path / "adapter")
    encoded = encode_prompts(PROMPTS, loaded.tokenizer, where="adapter")
    found = rollouts_of(loaded, batch_size=4)
    assert tokens(found) == tokens(rollouts_of(loaded, batch_size=1))
    assert tokens(found) != tokens(rollouts_of(load_checkpoint(base)))
    for (prompt, _), rollout in found.items():
        reference = teacher_forced_entropies(loaded.model, encoded[prompt], rollout.token_ids)
        assert rollout.entropies_nats == pytest.approx(reference, abs=1e-5)


def test_conversations_use_the_chat_template():
    tokenizer = tiny_tokenizer()
    user = [{"role": "user", "content": "1+1="}]
    prefilled = [*user, {"role": "assistant", "content": "2"}]
    prompts = PromptSet(({"prompt": user}, {"prompt": prefilled}))
    first, second = encode_prompts(prompts, tokenizer, where="x")
    assert tokenizer.decode(first) == "<|user|>1+1=<|end|><|assistant|>"
    assert tokenizer.decode(second) == "<|user|>1+1=<|end|><|assistant|>2"


def test_conversations_without_template():
    prompts = PromptSet(({"prompt": [{"role": "user", "content": "1"}]},), "set.jsonl")
    bare = copy.deepcopy(tiny_tokenizer())
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"set.jsonl holds conv.* runs/x has no chat template"):
        encode_prompts(prompts, bare, where="runs/x")


def test_lengths():
    check_lengths([[1] * 54], context_length=64, max_new_tokens=10, where="x")
    check_lengths([[1] * 9999], context_length=None, max_new_tokens=10, where="x")
    with pytest.raises(ValueError, match=r"prompt 1 has 55 tokens; .* lower max_new_tokens to 9"):
        check_lengths([[1], [1] * 55], context_length=64, max_new_tokens=10, where="x")
    with pytest.raises(ValueError, match=r"64 tokens: shorten or drop the prompt"):
        check_lengths([[1] * 64], context_length=64, max_new_tokens=10, where="x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


ENCODED = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [30]]


def shared_rollouts(model, batch_size, prompts=(0, 1)):
    return drawn_from(model, ENCODED, 4, prompts, max_new_tokens=8, batch_size=batch_size)


def check_same(one, other):
    assert one.keys() == other.keys()
    for key, rollout in one.items():
        assert other[key].token_ids == rollout.token_ids
        assert other[key].entropies_nats == pytest.approx(rollout.entropies_nats, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rollouts_are_those_of_generate(family, monkeypatch):
    """Prompts of one token, end tokens that let rows leave at different steps, and none."""
    for ends in (ENDS, None):
        model = checkpoint(family, ends=ends)
        assert reads_keys_and_values(model)
        decoded = shared_rollouts(model, batch_size=12, prompts=(0, 1, 2))
        with monkeypatch.context() as patched:
            patched.setattr("entropyfloor.rollouts.rollouts.reads_keys_and_values", lambda _: False)
            check_same(shared_rollouts(model, batch_size=12, prompts=(0, 1, 2)), decoded)


@pytest.mark.parametrize(
    ("family", "options", "prompts"),
    [("gemma2", {"sliding_window": 4}, (0, 1)), ("llama", {}, (0, 2))],
)
def test_a_short_window_and_a_prompt_of_one_token(family, options, prompts):
    model = tiny_checkpoint(family, ends=None, **options)
    alone, together = (shared_rollouts(model, size, prompts) for size in (1, 8))
    check_same(alone, together)


def test_each_prompt_is_read_once(monkeypatch):
    model = checkpoint(ends=None)
    rows = []
    forward = model.model.forward

    def counting(input_ids=None, **arguments):
        rows.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **arguments)

    counting.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.model, "forward", counting)
    shared_rollouts(model, batch_size=8)
    assert rows == [(2, 9), *[(8, 1)] * 7]


def test_rows_that_have_ended_are_not_computed(monkeypatch):
    model = checkpoint()
    rows = []
    forward = model.model.forward

    def counting(input_ids=None, **arguments):
        rows.append(len(input_ids))
        return forward(input_ids=input_ids, **arguments)

    counting.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.model, "forward", counting)
    drawn = shared_rollouts(model, batch_size=8)
    lengths = [len(rollout.token_ids) for rollout in drawn.values()]
    assert len(set(lengths)) > 2 and min(lengths) < 7
    assert rows[1:] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_other_states_are_left_to_generate():
    config = AutoConfig.for_model("jamba", num_hidden_layers=4)
    assert room_for(SimpleNamespace(config=config), 5) is None
    assert room_for(checkpoint().model, 5) is not None


def test_a_layer_with_room_is_transformers_growing_one():
    ours, theirs = RoomyLayer(6), DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    for new in (3, 1, 1, 2, 4):  # the room ends in between
        states = torch.randn(2, 3, 2, new, 5, generator=generator)
        for kept, plain in zip(ours.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(kept, plain)
        for layer in (ours, theirs):
            layer.batch_select_indices(torch.tensor([2, 0, 1]))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()
