import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from entropyfloor.coupling import divergence
from entropyfloor.coupling.divergence import both_divergences, pair_sums
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts import teacher_forced
from entropyfloor.rollouts.teacher_forced import Completion
from tiny_models import tiny_model, tiny_tokenizer


def loaded(family="llama", seed=0):
    return LoadedCheckpoint("m", f"m{seed}", tiny_model(family, seed).eval(), tiny_tokenizer())


def completions():
    generator = torch.Generator().manual_seed(0)
    result = []
    for index, (prompt, length) in enumerate([(3, 5), (1, 9), (6, 1), (2, 4)]):
        ids = torch.randint(5, 261, (prompt + length,), generator=generator).tolist()
        result.append(Completion(index, tuple(ids[:prompt]), tuple(ids[prompt:])))
    return result


@torch.no_grad()
def log_p(checkpoint, completion):
    ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
    logits = checkpoint.model(ids).logits[0, len(completion.prompt_ids) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("chunk_bytes", [1, 5 * 261 * 4, 2**26])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2", "qwen3_moe"])
def test_sums_equal_those_of_full_logits(family, chunk_bytes, monkeypatch):
    monkeypatch.setattr(teacher_forced, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(teacher_forced, "_ROW_TOKENS", 20)
    sft, rl = loaded(family), loaded(family, seed=1)
    sums = pair_sums(sft, rl, completions())
    for index, completion in enumerate(completions()):
        p, q = log_p(sft, completion), log_p(rl, completion)
        labels = torch.tensor(completion.ids)[:, None]
        assert sums.tokens[index] == len(completion.ids)
        assert sums.nll_sft[index] == pytest.approx(-float(p.gather(1, labels).sum()), rel=1e-5)
        assert sums.nll_rl[index] == pytest.approx(-float(q.gather(1, labels).sum()), rel=1e-5)
        assert sums.forward[index] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
        assert sums.reverse[index] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-4)
        ratio = float((p - q).gather(1, labels).sum())
        assert sums.log_ratios[index] == pytest.approx(ratio, rel=1e-4, abs=1e-4)


def test_an_adapter_is_the_only_difference():
    base = loaded()
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    adapted = LoadedCheckpoint(
        "a", "a", get_peft_model(tiny_model(), config).eval(), tiny_tokenizer()
    )
    sums = pair_sums(base, adapted, completions())
    assert min(sums.forward) > 1e-3 and min(sums.reverse) > 1e-3
    with adapted.model.disable_adapter():
        same = pair_sums(base, adapted, completions())
    assert max(map(abs, same.forward)) < 1e-5


def test_impossible_tokens_count_nothing():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    other = torch.tensor([[1.0, 0.0, -torch.inf]])
    p, q = logits.softmax(-1)[0, :2], other.softmax(-1)[0, :2]
    exact = float((p * (p / q).log()).sum())
    nll, other_nll, forward, reverse = both_divergences(logits, other, torch.tensor([1]))
    assert float(forward) == pytest.approx(exact) and float(reverse) == pytest.approx(exact)
    assert float(nll) == pytest.approx(-float(p[1].log()))
    assert float(other_nll) == pytest.approx(-float(q[1].log()))
    infinite = both_divergences(
        torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]]), torch.tensor([0])
    )
    assert float(infinite[2]) == torch.inf and float(infinite[3]) == pytest.approx(math.log(2))


def test_heads_of_different_sizes():
    bigger = copy.copy(loaded(seed=1))
    bigger.model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="m0 has 261 tokens in its head and m1 300"):
        pair_sums(loaded(), bigger, completions())


def test_logits_are_never_there_all_at_once(monkeypatch):
    """A third of the chunk's tokens for three times the vocabulary: the block stays the same."""
    blocks = []
    whole = divergence.head_logits

    def watching(checkpoint, hidden):
        blocks.append(whole(checkpoint, hidden))
        return blocks[-1]

    monkeypatch.setattr(divergence, "head_logits", watching)
    budget = 4 * 261 * 4
    monkeypatch.setattr(teacher_forced, "_CHUNK_BYTES", budget)
    for vocabulary in (261, 1044):
        models = [
            LoadedCheckpoint("m", "m", tiny_model(vocab_size=vocabulary).eval(), tiny_tokenizer())
            for _ in range(2)
        ]
        blocks.clear()
        pair_sums(*models, completions())
        assert max(b.numel() * b.element_size() for b in blocks) <= budget
        assert sum(len(b) for b in blocks) == 2 * sum(len(c.ids) for c in completions())
