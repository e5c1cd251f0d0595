"""The patched forward against the model's own logits: every family, every gradient, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from trl import __version__ as trl_version
from trl.trainer import utils as trl_utils

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.patch_model import patch_model
from entropyfloor_losses import (
    IGNORE_INDEX,
    BoundedProbabilityLoss,
    CrossEntropyLoss,
    EntropyBonusLoss,
    GEMLoss,
    SelectiveEntropyLoss,
    token_statistics,
)
from tiny_models import FAMILIES, VOCABULARY, tiny_model

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def exact_model(family="llama", **overrides):
    model = tiny_model(family, **overrides).double().eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the grouped product has no fp64
    return model


@pytest.fixture
def batch():
    """Three rows, right-padded, prompts not scored; the second has a single scored token."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCABULARY, (3, 19), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 14:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
    labels[:, :4] = IGNORE_INDEX
    labels[1, :18] = IGNORE_INDEX
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def own_logits(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]


def gradients(model, objective):
    model.zero_grad()
    objective.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(ours, theirs):
    assert set(ours) == set(theirs)
    assert any(gradient.abs().max() > 0 for gradient in theirs.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **EXACT
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tied, batch):
    model = exact_model(family, tie_word_embeddings=tied)
    logits, labels = own_logits(model, batch)
    expected = token_statistics(logits, labels, top_k=2)
    per_token = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    theirs = gradients(model, per_token.sum())

    patch_model(model, CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(-output.log_prob.flatten(), per_token.detach(), **EXACT)
    torch.testing.assert_close(output.objective, per_token.sum().detach(), **EXACT)
    torch.testing.assert_close(output.entropy, expected.entropy.detach(), **EXACT)
    torch.testing.assert_close(output.top_k_mass, expected.top_k_mass, **EXACT)
    assert output.is_top1.equal(logits.argmax(-1).eq(labels))
    assert output.scored.equal(labels != IGNORE_INDEX)
    assert not output.selected.any()
    assert_same_gradients(gradients(model, output.objective), theirs)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(smoothing=0.2),
        SelectiveEntropyLoss(lam=2.0, tau=0.025),
        BoundedProbabilityLoss(tau=0.004),
        BoundedProbabilityLoss(tau=float("inf")),
        GEMLoss(beta=0.5),
        EntropyBonusLoss(lam=0.5),
        EntropyBonusLoss(lam=0.5, selective=True, top_k=4, tau=0.05),
    ],
    ids=lambda loss: f"{loss.name}-{next(iter(vars(loss).values()))}",
)
def test_every_loss(family, loss, batch):
    model = exact_model(family)
    logits, labels = own_logits(model, batch)
    expected = token_statistics(logits, labels, request=loss.request)
    objective = loss(expected).sum()
    theirs = gradients(model, objective)

    patch_model(model, loss)
    output = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(output.objective, objective.detach(), **EXACT)
    assert output.selected.equal(loss.selected(expected))
    assert_same_gradients(gradients(model, output.objective), theirs)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_auxiliary_loss_is_the_models_own(family, batch):
    model = exact_model(family)
    expected = model(**batch, output_router_logits=True)
    patch_model(model, CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(output.aux_loss, expected.aux_loss.detach(), **EXACT)
    assert output.aux_loss.requires_grad
    model.config.output_router_logits = False
    assert model(**batch, entropyfloor_head=True).aux_loss is None


# trl's fused head came with 1.15, and 1.15.0 needs Triton for it on a CPU too.
add_fused_lm_head = getattr(trl_utils, "add_fused_lm_head", None)
has_fused_head = pytest.mark.skipif(
    add_fused_lm_head is None or trl_version == "1.15.0", reason="trl has no fused head here"
)


@pytest.mark.parametrize("below", [pytest.param(True, marks=has_fused_head), False])
def test_without_the_flag_the_forward_is_what_it_was(below, batch):
    model = tiny_model().eval()
    expected = model(**batch, num_items_in_batch=torch.tensor(7))
    if below:  # as in SFTTrainer: trl's patch is under ours
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    patch_model(model, CrossEntropyLoss())
    again = model(**batch, num_items_in_batch=torch.tensor(7))
    assert again.loss.equal(expected.loss)
    assert again.logits.equal(expected.logits)
    prompt = batch["input_ids"][1:2, :5]
    generated = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, 8)


@has_fused_head
def test_equals_trls_fused_head(batch):
    """The same call, the same fields, in fp32."""
    ours, theirs = tiny_model().eval(), tiny_model().eval()
    patch_model(ours, CrossEntropyLoss())
    add_fused_lm_head(theirs, outputs=("log_probs", "entropy", "is_top1"))
    mine, other = ours(**batch, entropyfloor_head=True), theirs(**batch, fused_lm_head=True)
    torch.testing.assert_close(mine.objective, -other.log_probs.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.log_prob, other.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.entropy, other.entropy, rtol=1e-5, atol=1e-5)
    assert mine.is_top1.equal(other.is_top1.bool())
    assert mine.scored.equal(other.label_mask)


def test_shifted_labels_are_not_shifted_again(batch):
    """Context parallelism passes labels that are already shifted, and as many as hidden states."""
    model = exact_model()
    patch_model(model, SelectiveEntropyLoss(tau=0.025))
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    expected = model(**batch, entropyfloor_head=True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    output = model(**inputs, shift_labels=shifted, entropyfloor_head=True)
    torch.testing.assert_close(output.objective, expected.objective, **EXACT)
    assert output.entropy.shape == (3, 19)
    torch.testing.assert_close(output.top_k_mass[:, :-1], expected.top_k_mass, **EXACT)


def test_a_batch_without_scored_tokens(batch):
    model = tiny_model()
    patch_model(model, SelectiveEntropyLoss(tau=0.5))
    batch["labels"].fill_(IGNORE_INDEX)
    output = model(**batch, entropyfloor_head=True)
    assert output.objective.item() == 0.0
    output.objective.backward()  # all ranks must be able to take part
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()
    )


def test_a_head_with_bias(batch):
    """Phi-2's and GPT-J's heads have one."""
    model = exact_model(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=True, dtype=torch.float64)
    logits, labels = own_logits(model, batch)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    theirs = gradients(model, expected)
    patch_model(model, CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(output.objective, expected.detach(), **EXACT)
    assert_same_gradients(gradients(model, output.objective), theirs)


def test_trainable_tokens_of_a_tied_head(batch):
    """PEFT merges the trained rows into the head's weight. (trl's own head raises here.)"""
    base = exact_model(tie_word_embeddings=True)
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[7, 200])
    model = get_peft_model(base, config).double()
    logits, labels = own_logits(model, batch)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    theirs = gradients(model, expected)
    patch_model(model.get_base_model(), CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(output.objective, expected.detach(), **EXACT)
    assert_same_gradients(gradients(model, output.objective), theirs)


def test_a_frozen_head_gets_no_gradient(batch):
    model = exact_model(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    logits, labels = own_logits(model, batch)
    theirs = gradients(
        model, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    )
    patch_model(model, CrossEntropyLoss())
    ours = gradients(model, model(**batch, entropyfloor_head=True).objective)
    assert "lm_head.weight" not in ours
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models(dtype, batch):
    """Statistics are fp32; their error is that of the model's own rounded logits."""
    model = tiny_model().to(dtype).eval()
    logits, labels = own_logits(model, batch)
    expected = token_statistics(logits, labels)
    patch_model(model, CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    assert output.objective.dtype == output.entropy.dtype == torch.float32
    torch.testing.assert_close(output.log_prob, expected.log_prob, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(output.entropy, expected.entropy, rtol=1e-2, atol=1e-2)
    output.objective.backward()
    assert model.lm_head.weight.grad.dtype == dtype


def test_a_head_of_another_dtype(batch):
    """A head kept in fp32 over a bf16 backbone is cast, as the model's own forward would need."""
    model = tiny_model(tie_word_embeddings=False).to(torch.bfloat16).eval()
    model.lm_head.float()
    patch_model(model, CrossEntropyLoss())
    output = model(**batch, entropyfloor_head=True)
    output.objective.backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_the_loss_can_be_replaced(batch):
    model = tiny_model().eval()
    head = patch_model(model, CrossEntropyLoss())
    assert isinstance(head, LossHead)
    before = model(**batch, entropyfloor_head=True).objective
    head.loss = EntropyBonusLoss(lam=1.0)
    after = model(**batch, entropyfloor_head=True)
    torch.testing.assert_close(after.objective, before - after.entropy.sum())


def test_labels_beyond_the_vocabulary(batch):
    model = tiny_model()
    patch_model(model, CrossEntropyLoss())
    batch["labels"][0, 5] = VOCABULARY
    with pytest.raises(ValueError, match=r"out of range, the first is 261.*same vocabulary\?"):
        model(**batch, entropyfloor_head=True)


def test_nan_logits(batch):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    patch_model(model, CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"NaN or \+inf at scored positions.*diverged"):
        model(**batch, entropyfloor_head=True)
