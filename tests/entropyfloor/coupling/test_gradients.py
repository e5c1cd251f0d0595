import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from entropyfloor.coupling import gradients
from entropyfloor.coupling.alignment import align
from entropyfloor.coupling.gradients import (
    WeightedCompletion,
    block_gradients,
    chosen_parameters,
    leave_one_out,
    parameter_sets,
    rl_blocks,
    sft_blocks,
)
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts import teacher_forced
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import Completion
from tiny_models import tiny_model, tiny_tokenizer

PLENTY = 2**33


def loaded(family="llama", *, lora=False, dtype=torch.float64, **overrides):
    model = tiny_model(family, **overrides).to(dtype).eval()
    if lora:
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config).to(dtype).eval()
        model.requires_grad_(False)
    return LoadedCheckpoint("m", "m", model, tiny_tokenizer())


def completion(seed, prompt=3, length=4):
    ids = torch.randint(5, 261, (prompt + length,), generator=torch.Generator().manual_seed(seed))
    return Completion(0, tuple(ids[:prompt].tolist()), tuple(ids[prompt:].tolist()))


def blocks():
    demos = [completion(i, 2 + i % 3, 1 + i % 4) for i in range(6)]
    rl = [
        [
            WeightedCompletion(completion(20 + 3 * k + i, 3, 2 + i), (-1.0) ** i * (k + 1))
            for i in range(3)
        ]
        for k in range(2)
    ]
    return sft_blocks(demos, 2), rl


def plain(checkpoint, block):
    """Gradients by name from the model's own logits, row by row."""
    _, parameters = chosen_parameters(checkpoint)
    for parameter in checkpoint.model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    loss = 0.0
    for row in block:
        ids = torch.tensor([[*row.completion.prompt_ids, *row.completion.ids]])
        logits = checkpoint.model(ids).logits[0, len(row.completion.prompt_ids) - 1 : -1]
        log_p = logits.log_softmax(-1).gather(1, torch.tensor(row.completion.ids)[:, None])
        loss = loss - row.weight * log_p.sum()
    loss.backward()
    result = {
        n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()
    }
    for parameter in checkpoint.model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return result


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"lora": True}),
        ("gpt2", {}),  # tied embeddings
        ("gemma2", {}),  # soft cap
        ("granite", {}),  # scaled logits
    ],
)
def test_gradients_equal_those_of_full_logits(family, options, monkeypatch):
    monkeypatch.setattr(teacher_forced, "_CHUNK_BYTES", 3 * 261 * 4)  # three tokens at a time
    monkeypatch.setattr(gradients, "_ROW_TOKENS", 14)  # several rows, several backward passes
    checkpoint = loaded(family, **options)
    sft, rl = blocks()
    exact = [plain(checkpoint, block) for block in [*sft, *rl]]
    result = list(block_gradients(checkpoint, sft, rl, memory_bytes=PLENTY))
    assert {f.name for f in result} == set(exact[0])
    for f in result:
        for slot, tensor in enumerate([*f.sft, *f.rl]):
            # Gemma normalises in fp32, whatever the model.
            torch.testing.assert_close(tensor, exact[slot][f.name], rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad or p.grad is not None for p in checkpoint.model.parameters())


@pytest.mark.parametrize("memory", [1, 200_000])
def test_less_memory_gives_the_same_numbers(memory):
    checkpoint = loaded(dtype=torch.float32)
    sft, rl = blocks()
    whole = list(block_gradients(checkpoint, sft, rl, memory_bytes=PLENTY))
    parts = list(block_gradients(checkpoint, sft, rl, memory_bytes=memory))
    assert [f.name for f in parts] == [f.name for f in whole]
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a.sft, b.sft, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.rl, b.rl, rtol=1e-4, atol=1e-6)


def test_memory_bounds_what_is_kept(monkeypatch):
    """Sums in memory never exceed the budget, or what one parameter needs."""
    checkpoint = loaded(dtype=torch.float32)
    _, parameters = chosen_parameters(checkpoint)
    budget = 4 * 4 * 261 * 32  # the embedding's four sums
    sets = parameter_sets(parameters, 4, budget)
    assert len(sets) > 3 and [n for names in sets for n in names] == list(parameters)
    most = 0
    add = gradients._Sums.add

    def watching(self, name, parameter):
        nonlocal most
        add(self, name, parameter)
        most = max(most, sum(t.numel() * t.element_size() for t in self._sums.values()))
        assert parameter.grad is None
        held = [p for p in parameters.values() if p.grad is not None]
        assert len(held) <= 1  # the device holds one gradient at a time

    monkeypatch.setattr(gradients._Sums, "add", watching)
    list(block_gradients(checkpoint, *blocks(), memory_bytes=budget))
    assert 0.5 * budget < most <= budget


def test_sft_blocks_give_the_mean_loss_per_token():
    demos = [completion(i, 3, 1 + i) for i in range(5)]
    checkpoint = loaded()
    result = list(
        block_gradients(checkpoint, sft_blocks(demos, 2), blocks()[1], memory_bytes=PLENTY)
    )
    tokens = sum(len(d.ids) for d in demos)
    exact = plain(checkpoint, [WeightedCompletion(d, 1 / tokens) for d in demos])
    for f in result:
        torch.testing.assert_close(f.sft.mean(0), exact[f.name], rtol=1e-7, atol=1e-10)


def rollout(prompt, sample, ids):
    return Rollout(prompt, sample, tuple(ids), np.zeros(len(ids), np.float32), "", False)


def test_rl_blocks_are_unbiased():
    """Over every first token, weighted by its probability: the gradient of the mean reward."""
    checkpoint = loaded(vocab_size=11)
    encoded = [[5, 6], [7]]
    rewards = torch.rand(2, 11, generator=torch.Generator().manual_seed(0)).double()
    _, parameters = chosen_parameters(checkpoint)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    p = torch.stack(
        [checkpoint.model(torch.tensor([e])).logits[0, -1].softmax(-1) for e in encoded]
    )
    exact = torch.autograd.grad(-(p * rewards).sum(-1).mean(), list(parameters.values()))
    # Groups of two, every pair in proportion to its chance; the second prompt in its own block.
    result = [torch.zeros_like(g) for g in exact]
    chances = p.detach()
    for x in range(2):
        rows = []
        for a in range(11):
            for b in range(11):
                group = [
                    (rollout(x, 0, [a]), float(rewards[x, a])),
                    (rollout(x, 1, [b]), float(rewards[x, b])),
                ]
                (block,) = rl_blocks([group], encoded, 1)
                chance = float(chances[x, a] * chances[x, b])
                rows += [WeightedCompletion(w.completion, w.weight * chance / 2) for w in block]
        part = block_gradients(checkpoint, [[], []], [rows, []], memory_bytes=PLENTY)
        for total, f in zip(result, part, strict=True):
            total += f.rl[0]
    for a, b in zip(result, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_advantages():
    assert leave_one_out([1.0, 0.0, 0.0]) == pytest.approx([1.0, -0.5, -0.5])
    assert leave_one_out([2.0, 2.0]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="draw two or more"):
        leave_one_out([1.0])
    agreeing = [[(rollout(0, s, [3]), 1.0) for s in range(2)]]
    assert rl_blocks(agreeing, [[1]], 1) == [[]]


@pytest.mark.parametrize("lora", [False, True])
def test_alignment_by_layer(lora):
    checkpoint = loaded(lora=lora)
    sft, rl = blocks()
    kind, parameters = chosen_parameters(checkpoint)
    assert kind == ("adapter" if lora else "all")
    alignment = align(
        block_gradients(checkpoint, sft, rl, memory_bytes=PLENTY), parameters=kind, rank=2
    )
    exact = [plain(checkpoint, block) for block in [*sft, *rl]]

    def flat(slot, names):
        return torch.cat([exact[slot][name].flatten() for name in names])

    def cosine(names):
        s, r = (flat(i, names) + flat(i + 1, names) for i in (0, 2))
        return float(s @ r / (s.norm() * r.norm()))

    assert alignment.whole.agreement.cosine == pytest.approx(cosine(list(parameters)), abs=1e-9)
    assert alignment.whole.num_parameters == sum(p.numel() for p in parameters.values())
    names = ["layer 0", "layer 1"] if lora else ["embeddings", "layer 0", "layer 1", "rest"]
    assert [layer.name for layer in alignment.layers] == names
    first = [n for n in parameters if ".layers.0." in n]
    assert alignment.layers[names.index("layer 0")].agreement.cosine == pytest.approx(
        cosine(first), abs=1e-9
    )
    for layer in (alignment.whole, *alignment.layers):
        assert abs(layer.agreement.cosine) <= layer.cosine_bound + 1e-9
        if layer.name != "rest":
            assert 0.0 < layer.sft_share <= 1.0 + 1e-9
    # Shares add up over matrices by energy.
    total = top = 0.0
    for name in first:
        gradient = (exact[0][name] + exact[1][name]) / 2
        if gradient.ndim == 2:
            energies = torch.linalg.svdvals(gradient) ** 2
            total, top = total + float(energies.sum()), top + float(energies[:2].sum())
    assert alignment.layers[names.index("layer 0")].sft_share == pytest.approx(
        top / total, abs=1e-9
    )


def test_small_gradients_survive_bfloat16():
    """Sums of a bf16 model are fp32: many small parts add up."""
    checkpoint = loaded(dtype=torch.bfloat16)
    sft, rl = blocks()
    result = next(iter(block_gradients(checkpoint, sft, rl, memory_bytes=PLENTY)))
    assert result.sft.dtype == torch.float32
