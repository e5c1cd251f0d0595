"""`patch_model` and `EntropyFloorCallback` without SEDTrainer: the same run, step by step."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sft_runs import Run, arguments, needs_sft_trainer, prompt_completion_rows, sed_trainer
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTTrainer

from entropyfloor import EntropyFloorCallback, patch_model
from entropyfloor_losses import GEMLoss, loss_by_name
from tiny_models import tiny_model, tiny_tokenizer

LOSSES = {
    "ce": {},
    "sed": {"tau": 0.025},
    "sed, calibrated": {},
    "gem": {"beta": 0.7},
    "ce, floor": {"entropy_floor": 5.2, "floor_place": "onset_anchor", "floor_probe_prompts": 0},
    "ce, probed": {"entropy_floor": 5.2, "floor_place": "anchor", "floor_probe_steps": 2},
}
STEPS = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
}
FLOOR = ("entropy_floor", "floor_place", "floor_probe_prompts", "floor_probe_steps")
PROBED = [f"{i} + {i} =" for i in range(3)]


def model(lora: bool):
    base = tiny_model()
    if not lora:
        return base
    torch.manual_seed(1)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))


def sed(folder, name, lora):
    options = {"loss": name.split(",")[0], **LOSSES[name]}
    trainer = {"model": model(lora), "probe_prompts": PROBED}
    return sed_trainer(folder, trainer=trainer, **STEPS, **options)


def plain(folder, name, lora, *callbacks, **config):
    """transformers.Trainer on the rows as SEDTrainer tokenised them."""
    options = dict(LOSSES[name])
    floor = {option: options.pop(option) for option in FLOOR if option in options}
    trained = model(lora)
    head = patch_model(trained, name.split(",")[0], **options)
    rows = sed(folder, "ce", False)
    return Trainer(
        trained,
        arguments(folder, TrainingArguments, **{**STEPS, **config}),
        data_collator=rows.data_collator,
        train_dataset=rows.train_dataset,
        eval_dataset=rows.train_dataset.select(range(4)),
        processing_class=tiny_tokenizer(),
        callbacks=[EntropyFloorCallback(head, probe_prompts=PROBED, **floor), *callbacks],
    )


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_plain_trainer_is_sed_trainer_step_by_step(tmp_path, name, lora):
    """Accumulated, and resumed half-way into another folder; to the last bit."""
    ours, theirs = Run.of(plain(tmp_path / "plain", name, lora)), Run.of(sed(tmp_path, name, lora))
    names = ["loss", "ce", "penalty", "selected_fraction", "top_k_mass", "entropy", "grad_norm"]
    if "entropy_floor" in LOSSES[name]:
        names += ["floor_weight", "floor_entropy", "reference_kl"]
        assert max(theirs.series("floor_weight")) > 0
    for logged in set(names) - {"entropy"}:
        assert ours.series(logged) == theirs.series(logged), logged
    for weight, value in ours.weights.items():
        assert value.equal(theirs.weights[weight])
    again = plain(tmp_path / "moved", name, lora)
    again.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))
    steps = [entry for entry in again.state.log_history if "loss" in entry]
    for logged in names:
        assert [step[logged] for step in steps] == ours.series(logged), logged


def test_each_run_writes_its_own_record(tmp_path):
    """Also where a trainer trains twice, and both runs save the same step alone."""
    trainer = plain(tmp_path, "ce", False, max_steps=2, save_steps=2)
    for _ in range(2):
        trainer.train()
        (tmp_path / "checkpoint-2" / "entropyfloor.json").unlink()


def test_what_is_logged_reaches_reporters_and_evaluations(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    trainer = plain(tmp_path, "sed, calibrated", False, eval_strategy="steps", eval_steps=3)
    trainer.callback_handler.callbacks.insert(1, Reporter())  # where Trainer puts W&B
    trainer.train()
    assert [set(entry) & {"ce", "eval_ce"} for entry in seen[:4]] == [
        {"ce"},
        {"ce"},
        {"ce"},
        {"eval_ce"},
    ]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"] + metrics["eval_penalty"], 1e-5)


def test_evaluation_with_logits_is_the_models_own(tmp_path):
    def largest(prediction):
        return {"largest": float(prediction.predictions.max())}

    trainer = plain(tmp_path, "gem", False)
    trainer.compute_metrics = largest
    ours = trainer.evaluate()
    (callback,) = [c for c in trainer.callback_handler.callbacks if hasattr(c, "head")]
    callback.head.detach()
    theirs = trainer.evaluate()
    assert ours["eval_largest"] == theirs["eval_largest"]
    assert ours["eval_ce"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    assert ours["eval_loss"] != pytest.approx(theirs["eval_loss"], rel=1e-2)


@needs_sft_trainer
def test_a_trainer_that_computes_another_loss_is_refused_before_its_first_step(tmp_path):
    """SFTTrainer builds its own head; a replaced compute_loss stands for Unsloth and the like."""

    class Replaced(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            logits = model(**inputs).logits[:, :-1].flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())

    trained = tiny_model()
    head = patch_model(trained, "ce")
    rows = sed(tmp_path, "ce", False)
    given = {"train_dataset": rows.train_dataset, "data_collator": rows.data_collator}
    before = {name: value.clone() for name, value in trained.named_parameters()}
    for kind, config in ((Replaced, arguments(tmp_path, TrainingArguments)), (SFTTrainer, None)):
        if config is None:
            config, given = arguments(tmp_path), {"train_dataset": prompt_completion_rows()}
            given["processing_class"] = tiny_tokenizer()
        trainer = kind(trained, config, callbacks=[EntropyFloorCallback(head)], **given)
        with pytest.raises(ValueError, match=f"{kind.__name__} computed its first step without"):
            trainer.train()
    assert all(value.equal(before[name]) for name, value in trained.named_parameters())


def batch():
    ids = torch.randint(5, 261, (4, 24), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :7] = -100
    return {"input_ids": ids, "labels": labels}


def test_a_bare_loop_holds_the_floor(tmp_path):
    trained, rows = tiny_model().train(), batch()
    head = patch_model(trained, "ce")
    floor = EntropyFloorCallback(head, entropy_floor=2.0, floor_probe_prompts=0)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-3)
    for _ in range(80):
        trained(**rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics = floor.step()
    assert 1.9 < metrics["entropy"] < 3.5 and metrics["floor_weight"] > 0
    floor.save(tmp_path)
    again = EntropyFloorCallback(head, entropy_floor=2.0, floor_probe_prompts=0)
    again.restore(tmp_path)
    assert again.floor.controller.state_dict() == floor.floor.controller.state_dict()


def test_detached_the_forward_is_the_models_own():
    trained, rows = tiny_model().eval(), batch()
    expected = trained(**rows)
    head = patch_model(trained, GEMLoss())
    trained.train()
    assert trained(**rows, return_dict=False)[0] > 0 and trained(**rows).get("logits") is None
    alone = trained.eval()(**rows, skip_logits=True)
    assert alone.get("logits") is None
    torch.testing.assert_close(alone.loss, trained(**rows).loss)
    prompt = rows["input_ids"][:1, :5]
    generated = trained.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, 8)
    head.detach()
    head.detach()
    again = trained.eval()(**rows)
    assert again.loss.equal(expected.loss) and again.logits.equal(expected.logits)
    assert not {"forward", "accepts_loss_kwargs"} & set(vars(trained))


def test_counts_patches_and_copies():
    trained, rows = tiny_model().train(), batch()
    first = patch_model(trained, "ce")
    mean = trained(**rows).loss.detach()
    tokens = int((rows["labels"][:, 1:] != -100).sum())
    counted = trained(**rows, num_items_in_batch=torch.tensor(2 * tokens)).loss
    torch.testing.assert_close(counted, mean / 2)
    assert first.pop_sums()["tokens"] == 2 * tokens and first.pop_sums()["tokens"] == 0
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    assert not other(**rows).loss.isclose(mean, rtol=1e-3)  # not the original's
    second = patch_model(trained, loss_by_name("gem"))
    assert not first.attached and second.attached
    assert not trained(**rows).loss.isclose(mean, rtol=1e-3)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("cross-entropy", {}, "unknown loss 'cross-entropy'; choose one of ce, sed"),
        ("ce", {"lam": 1.0}, "loss 'ce' does not take 'lam'"),
        (3, {}, "loss is 3; pass a name"),
        (GEMLoss(), {"beta": 1.0}, "beta beside it would have no effect"),
        ("sed", {"top_k": 262}, "top_k is 262, more than the vocabulary of 261"),
    ],
)
def test_refused_before_anything_is_patched(loss, options, message):
    trained = tiny_model()
    with pytest.raises(ValueError, match=message):
        patch_model(trained, loss, **options)
    assert "forward" not in vars(trained)


def test_models_and_losses_that_cannot_be_called():
    with pytest.raises(ValueError, match=r"Linear is no causal language model.*linear_loss"):
        patch_model(torch.nn.Linear(2, 2), "ce")
    trained, rows = tiny_model().train(), batch()
    with pytest.raises(ValueError, match="patch_model\\(model\\) first, then wrap"):
        patch_model(torch.nn.DataParallel(trained), "ce")
    head = patch_model(trained, "sed")
    with pytest.raises(ValueError, match=r"call head\.calibrate"):
        trained(**rows)
    head.calibrate([rows])
    assert 0 < head.loss.tau < 1 and trained(**rows).loss > 0
    with pytest.raises(ValueError, match=r"use entropyfloor\.SEDTrainer in place of SFTTrainer"):
        trained(**rows, fused_lm_head=True)
    other = EntropyFloorCallback(patch_model(tiny_model(), "ce"), entropy_floor=1.0)
    with pytest.raises(ValueError, match="the head is of another"):
        other.prepare(trained)


@pytest.mark.parametrize("after", [False, True], ids=["patched last", "patched first"])
def test_an_adapter_on_the_head_is_refused(after):
    trained = tiny_model(tie_word_embeddings=False)
    head = patch_model(trained, "ce") if after else None
    adapted = get_peft_model(trained, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match=r"has an adapter .*modules_to_save=\['lm_head'\]"):
        adapted.train()(**batch()) if head else patch_model(adapted, "ce")
