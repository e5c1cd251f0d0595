import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from entropyfloor.models.checkpoints import LoadedCheckpoint, load_checkpoint
from entropyfloor.rollouts import teacher_forced
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.teacher_forced import encode_held_out, held_out_loss, kl_to_base
from flat_calls import screen
from tiny_models import FAMILIES, tiny_checkpoint, tiny_tokenizer

HELD_OUT = PromptSet(
    tuple(
        {"prompt": p, "completion": c}
        for p, c in [("1+2=", "3"), ("12+34=", "46, is it?"), ("a", "bc" * 9), ("0", "-")]
    ),
    "held out",
)
OPTIONS = {"max_new_tokens": 5, "progress": False, "num_samples": 2}


def completions_of(checkpoint, held_out=HELD_OUT):
    encoded = encode_prompts(held_out, checkpoint.tokenizer, where="m")
    return encode_held_out(held_out, encoded, checkpoint.tokenizer)


@torch.no_grad()
def log_probabilities(checkpoint, completion):
    """[tokens, V] in fp64 from the model's own logits, one row, no padding."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
    logits = checkpoint.model(ids).logits[0, len(completion.prompt_ids) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("chunk_bytes", [1, 5 * 261 * 4, 2**26])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_kl_equal_those_of_full_logits(family, chunk_bytes, monkeypatch):
    monkeypatch.setattr(teacher_forced, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(teacher_forced, "_ROW_TOKENS", 60)  # several rows, several batches
    checkpoint, base = tiny_checkpoint(family), tiny_checkpoint(family, 1)
    completions = completions_of(checkpoint)
    loss = held_out_loss(checkpoint, completions, num_prompts=4)
    kl = kl_to_base(checkpoint, base, completions, num_prompts=4)
    for completion in completions:
        log_p, log_q = (log_probabilities(c, completion) for c in (checkpoint, base))
        index, labels = completion.prompt_index, torch.tensor(completion.ids)
        nll = -log_p.gather(1, labels[:, None]).sum()
        assert loss.sums[index] == pytest.approx(float(nll), rel=1e-5)
        assert loss.tokens[index] == len(labels)
        exact = float((log_p.exp() * (log_p - log_q)).sum())
        assert kl.sums[index] == pytest.approx(exact, rel=1e-4)


def test_kl_to_itself_is_zero():
    checkpoint = tiny_checkpoint()
    kl = kl_to_base(checkpoint, tiny_checkpoint(), completions_of(checkpoint), num_prompts=4)
    assert kl.sums == pytest.approx((0.0,) * 4, abs=1e-6)


def test_adapters_count(save_checkpoint, tmp_path):
    base = save_checkpoint("base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(load_checkpoint(base).model, config).eval()
    adapter = LoadedCheckpoint("a", "a", model, tiny_tokenizer())
    completions = completions_of(adapter)
    kl = kl_to_base(adapter, load_checkpoint(base), completions, num_prompts=4)
    log_p = log_probabilities(adapter, completions[1])
    log_q = log_probabilities(load_checkpoint(base), completions[1])
    assert kl.sums[1] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-4)
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(load_checkpoint(base).model, virtual).eval()
    with pytest.raises(ValueError, match="prompt-learning adapter"):
        held_out_loss(
            LoadedCheckpoint("v", "v", model, tiny_tokenizer()), completions, num_prompts=4
        )


def test_completions_end_as_in_training():
    tokenizer = tiny_tokenizer()
    first = completions_of(tiny_checkpoint())[0]
    assert tokenizer.decode(first.ids) == "3<|end|>"
    chat = PromptSet(
        (
            {"prompt": [{"role": "user", "content": "1+2="}], "completion": "3"},
            {
                "prompt": [{"role": "user", "content": "1+2="}],
                "completion": [{"role": "assistant", "content": "3"}],
            },
        )
    )
    for completion in completions_of(tiny_checkpoint(), chat):
        assert tokenizer.decode(completion.prompt_ids) == "<|user|>1+2=<|end|><|assistant|>"
        assert tokenizer.decode(completion.ids) == "3<|end|>"


def test_tool_calls_are_completions_where_a_template_renders_them():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    row = {"prompt": [{"role": "user", "content": "1+2="}], "completion": [call]}
    checkpoint = LoadedCheckpoint("m", "m", tiny_checkpoint().model, tokenizer)
    with pytest.raises(ValueError, match="rows, row 0: the tool calls of 'completion' cannot be"):
        completions_of(checkpoint, PromptSet(({**row, "prompt": "1+2="},)))
    said = "{{ message['tool_calls'] | tojson if message['tool_calls'] else message['content'] }}"
    plain = "{{ message['content'] }}"
    assert plain in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(plain, said)
    (completion,) = completions_of(checkpoint, PromptSet((row,)))
    assert tokenizer.decode(completion.ids) == '[{"function": {"name": "add"}}]<|end|>'


def _must_not_load(*_, **__):
    raise AssertionError("loaded")


def test_screened(save_checkpoint, tmp_path, monkeypatch):
    base, other = save_checkpoint("base"), save_checkpoint("other", seed=1)
    report = screen(
        [base, other],
        prompts=HELD_OUT,
        held_out=HELD_OUT,
        base=base,
        output_dir=tmp_path / "out",
        **OPTIONS,
    )
    first, second = report.checkpoints
    assert first.kl_to_base == pytest.approx(0.0, abs=1e-6)
    assert second.kl_to_base > 0.1 and second.held_out_kl_to_base > 0.1
    assert first.held_out_loss > 1.0
    for measure in ("held_out_loss", "kl_to_base", "held_out_kl_to_base"):
        low, high = second.intervals[measure]
        assert low <= getattr(second, measure) <= high
    assert {"held_out_loss", "kl_to_base"} <= set(report.recommendation.predictors)
    # A second run has nothing left to compute, and other held-out rows are not taken for these.
    monkeypatch.setattr("entropyfloor.rollouts.engines.load_checkpoint", _must_not_load)
    again = {**OPTIONS, "prompts": HELD_OUT, "base": base, "output_dir": tmp_path / "out"}
    assert screen([base, other], held_out=HELD_OUT, **again).checkpoints[1].kl_to_base == (
        second.kl_to_base
    )
    fewer = PromptSet(HELD_OUT.rows[:3], "fewer")
    with pytest.raises(AssertionError, match="loaded"):
        screen([base, other], held_out=fewer, **again)


def test_held_out_is_the_prompts_own_completions_if_they_have_any(save_checkpoint):
    report = screen([save_checkpoint()], prompts=HELD_OUT, **OPTIONS)
    assert report.checkpoints[0].held_out_loss is not None
    assert report.checkpoints[0].kl_to_base is None


def test_errors_come_before_any_model_is_loaded(save_checkpoint, monkeypatch):
    directory = save_checkpoint()
    monkeypatch.setattr("entropyfloor.rollouts.engines.load_checkpoint", _must_not_load)
    with pytest.raises(ValueError, match="rows, row 1 has no 'completion'"):
        rows = ({"prompt": "a", "completion": "b"}, {"prompt": "c"})
        screen([directory], prompts=HELD_OUT, held_out=PromptSet(rows), **OPTIONS)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        screen([directory], prompts=HELD_OUT, base="./nowhere", **OPTIONS)


def test_vocabularies_of_different_sizes():
    checkpoint = tiny_checkpoint()
    bigger = tiny_checkpoint()
    bigger.model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match=r"has 261 tokens in its head and the base .* 300"):
        kl_to_base(checkpoint, bigger, completions_of(checkpoint), num_prompts=4)
