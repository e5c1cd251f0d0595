"""Losses that compare with a reference model, or weigh whole sequences, inside the trainer."""

import json

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from sft_runs import Run, arguments, prompt_completion_rows, sed_trainer
from transformers import Trainer, TrainingArguments

from entropyfloor import EntropyFloorCallback, SEDConfig, patch_model
from entropyfloor_losses import CoverageLoss, GibbsLoss, token_statistics
from tiny_models import tiny_model

ROWS = 12
BATCH = {"per_device_train_batch_size": ROWS, "max_steps": 4}
COMPARING = {
    "gift": {"loss": "gift", "beta": 2.0},
    "asft": {"loss": "asft", "lam": 0.5},
}
WEIGHING = {
    "dco": {"loss": "dco", "group_size": 2},
    "tail": {"loss": "tail", "drop_fraction": 0.4},
}
OF_ANOTHER = {  # compared with a `reference_model`
    "gift of another": {"loss": "gift", "beta": 2.0},
    "tail of another": {"loss": "tail", "drop_fraction": 0.4},
}
SNAPSHOT = {"loss": "psft", "refresh_steps": 3, "epsilon_high": 0.05}


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Another model than training starts from, of the same vocabulary."""
    folder = tmp_path_factory.mktemp("another")
    torch.manual_seed(9)
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def trainer_of(folder, name, another=None, *, trainer=None, **config):
    options = {**COMPARING, **WEIGHING, **OF_ANOTHER, "psft": SNAPSHOT}[name]
    if name in OF_ANOTHER:
        options = {**options, "reference_model": another}
    rows = {"train_dataset": prompt_completion_rows(ROWS), **(trainer or {})}
    return sed_trainer(folder, trainer=rows, **{**BATCH, **options, **config})


def run(*args, **kwargs):
    return Run.of(trainer_of(*args, **kwargs))


def agree(one, other, rel=1e-4):
    for name in ("loss", "ce", "selected_fraction"):
        assert one.series(name) == pytest.approx(other.series(name), rel=rel, abs=1e-5), name
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*COMPARING, *WEIGHING, *OF_ANOTHER, "psft"])
def test_micro_batches_equal_one_batch(tmp_path, another, name):
    one = run(tmp_path / "one", name, another)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": ROWS // 2}
    agree(run(tmp_path / "many", name, another, **split), one)
    assert one.series("loss")[0] != one.series("loss")[1]


@pytest.mark.parametrize("name", [*COMPARING, *WEIGHING, *OF_ANOTHER, "psft"])
def test_padding_free_equals_rows(tmp_path, another, name):
    """A packed sequence is what the position ids say."""
    packed = {"padding_free": True, "max_length": None}
    agree(run(tmp_path / "packed", name, another, **packed), run(tmp_path / "rows", name, another))


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_cache_of_the_whole_vocabulary_is_the_model(tmp_path, name, lora):
    """And of the evaluation set too, which the loss needs its reference for."""
    data = {"eval_dataset": prompt_completion_rows(20).select(range(ROWS, 20))}
    if lora:
        data["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    settings = {"eval_strategy": "steps", "eval_steps": 4}
    live = run(tmp_path / "live", name, trainer=dict(data), **settings)
    cache = {"reference_cache": str(tmp_path / "cache"), "reference_top_k": 261}
    cached = run(tmp_path / "cached", name, trainer=dict(data), **settings, **cache)
    agree(cached, live, rel=1e-3)
    assert cached.evaluations[0]["eval_loss"] == pytest.approx(
        live.evaluations[0]["eval_loss"], rel=1e-4
    )
    assert live.evaluations[0]["eval_loss"] != pytest.approx(live.evaluations[0]["eval_ce"], 1e-3)


def test_gift_is_the_kl_to_the_tilted_starting_model(tmp_path):
    """The second step: the model has moved, the reference has not."""
    trainer = trainer_of(tmp_path, "gift", max_steps=2)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    first, start = trainer_of(tmp_path, "gift", max_steps=1), tiny_model()
    first.train()
    first._head.detach()

    def logits(model):
        with torch.no_grad():
            kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            return model.eval()(**kept).logits[:, :-1].double()

    loss = GibbsLoss(beta=2.0)
    statistics = token_statistics(
        logits(first.model),
        inputs["labels"][:, 1:],
        request=loss.request,
        reference_logits=logits(start),
    )
    value = loss(statistics).sum() / statistics.scored.sum()
    assert Run.of(trainer).series("loss")[1] == pytest.approx(float(value), rel=1e-4)


def test_tail_leaves_out_what_fell_most(tmp_path):
    """At the first step nothing has; then the share that was asked for, less what is rounded up."""
    # In evaluation mode before the first step, as from_pretrained leaves a model, and in between.
    data = {"model": tiny_model().eval(), "eval_dataset": prompt_completion_rows(4)}
    settings = {"learning_rate": 1.0, "eval_strategy": "steps", "eval_steps": 1}
    steps = run(tmp_path, "tail", trainer=data, **settings).steps
    assert steps[0]["selected_fraction"] == 0
    assert steps[0]["loss"] == pytest.approx(steps[0]["ce"], rel=1e-6)
    assert all(0.05 < step["selected_fraction"] < 0.8 for step in steps[1:])
    # What is left out has learnt more than what stays.
    assert all(step["loss"] > step["ce"] for step in steps[2:])


def test_dco_weighs_each_sequence_by_itself(tmp_path):
    trainer = trainer_of(tmp_path, "dco", max_steps=1)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = tiny_model()(**kept).logits[:, :-1].double()
    statistics = token_statistics(logits, inputs["labels"][:, 1:])
    p = statistics.log_prob.sum(-1, keepdim=True).exp()
    weight = 2 * p * (1 - p) / -torch.expm1(2 * torch.log1p(-p))
    value = -(weight * statistics.log_prob).sum() / statistics.scored.sum()
    assert Run.of(trainer).series("loss")[0] == pytest.approx(float(value), rel=1e-5)


def test_psft_clips_within_an_interval_and_pulls_as_ce_after_a_refresh(tmp_path):
    steps = run(tmp_path, "psft", max_steps=7, learning_rate=1.0).series("selected_fraction")
    assert steps[0] == steps[3] == steps[6] == 0
    assert min(steps[1], steps[2], steps[4], steps[5]) > 0


@pytest.mark.parametrize("name", ["psft", "tail", "gift"])
def test_resumes_exactly(tmp_path, name):
    """Between two refreshes, too; a finished run's cache is used again."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "learning_rate": 0.5}
    whole = run(tmp_path / "whole", name, **settings)
    half = trainer_of(tmp_path / "half", name, **settings)
    half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    again = [entry["loss"] for entry in half.state.log_history if "loss" in entry]
    assert again == whole.series("loss")
    record = json.loads((tmp_path / "whole" / "checkpoint-4" / "entropyfloor.json").read_text())
    assert record["loss"] == name


@pytest.mark.parametrize(
    ("name", "place"),
    [("gift", "anchor"), ("gift", "uniform"), ("psft", "uniform"), ("tail", "onset_anchor")],
)
def test_with_an_entropy_floor(tmp_path, name, place):
    floor = {"entropy_floor": 5.5, "floor_place": place, "floor_probe_prompts": 0}
    cache = {"reference_cache": str(tmp_path / "cache")} if place == "anchor" else {}
    held = run(tmp_path, name, **floor, **cache)
    assert held.steps[-1]["floor_weight"] > 0
    assert held.series("loss") != run(tmp_path / "without", name).series("loss")


def test_evaluations_weigh_nothing(tmp_path):
    held_out = {"eval_dataset": prompt_completion_rows(20).select(range(ROWS, 20))}
    for name in ("dco", "tail"):
        trainer = trainer_of(tmp_path / name, name, trainer=held_out)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"], rel=1e-6)


@pytest.mark.parametrize("name", ["gift", "psft", "dco"])
def test_in_a_plain_trainer(tmp_path, name):
    """EntropyFloorCallback builds the reference, and refreshes it."""
    rows = trainer_of(tmp_path / "sed", name)
    options = dict({**COMPARING, **WEIGHING, "psft": SNAPSHOT}[name])
    model = tiny_model()
    head = patch_model(model, options.pop("loss"), **options)
    plain = Trainer(
        model,
        arguments(tmp_path / "plain", TrainingArguments, **BATCH),
        data_collator=rows.data_collator,
        train_dataset=rows.train_dataset,
        callbacks=[EntropyFloorCallback(head)],
    )
    assert Run.of(plain).series("ce") == pytest.approx(Run.of(rows).series("ce"), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "ce", "reference_model": "m"}, "compares with no model that is given"),
        ({"loss": "psft", "reference_model": "m"}, "compares with no model that is given"),
        ({"loss": "dco", "reference_cache": "c"}, "nothing would use it"),
        ({"loss": "psft", "reference_cache": "c"}, "nothing would use it"),
        ({"loss": "gift", "entropy_floor": 0.2}, "floor_place='uniform' or 'anchor'"),
        ({"loss": "psft", "entropy_floor": 0.2, "floor_place": "anchor"}, "floor_place='uniform'"),
        ({"loss": "gift", "drop_fraction": 0.1}, "'gift' does not take 'drop_fraction'"),
        ({"loss": "ce", "reference_top_k": 0}, "reference_top_k is 0"),
    ],
)
def test_refused_settings(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        SEDConfig(str(tmp_path), use_cpu=True, bf16=False, **config)


def test_refused_in_training(tmp_path):
    def stream():
        yield from prompt_completion_rows(ROWS)

    for config in ({"loss": "tail"}, {"loss": "gift", "reference_cache": str(tmp_path / "c")}):
        streamed = {"train_dataset": IterableDataset.from_generator(stream)}
        with pytest.raises(ValueError, match="a streamed set can be read once"):
            sed_trainer(tmp_path, trainer=streamed, **BATCH, **config).train()
    with pytest.raises(ValueError, match="top_k is 300, more than the vocabulary"):
        sed_trainer(tmp_path, loss="eaft", top_k=300, **BATCH)
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}
    for loss, message in (
        ("gift", "EntropyFloorCallback"),
        ("tail", "use SEDTrainer"),
    ):
        model = tiny_model().train()
        patch_model(model, loss)
        with pytest.raises(ValueError, match=message):
            model(**batch)
    model = tiny_model().train()
    patch_model(model, CoverageLoss())
    model(**batch).loss.backward()
