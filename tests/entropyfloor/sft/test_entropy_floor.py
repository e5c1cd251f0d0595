"""SEDTrainer(entropy_floor=...): the loop in training, resume, ranks, violations, bad input."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from sft_runs import Run, prompt_completion_rows, sed_trainer, text_rows

from entropyfloor.sft.floor.options import PLACES
from entropyfloor.sft.floor.probe import best_above, last_above, measured, prompts_of
from entropyfloor.sft.run_record import read_record
from entropyfloor_losses import IGNORE_INDEX, ReferenceHead, token_statistics
from tiny_models import tiny_model

FLOOR = {
    "loss": "ce",
    "entropy_floor": 3.0,  # random models start near log 261 = 5.6 nats
    "optim": "adamw_torch",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "floor_probe_steps": 10,
    "floor_probe_prompts": 4,
    "floor_probe_tokens": 8,
}


def floored(tmp_path, **config):
    trainer = config.pop("trainer", None)
    return sed_trainer(tmp_path, trainer=trainer, **{**FLOOR, **config})


@pytest.fixture(scope="module")
def entropy_without_a_floor(tmp_path_factory):
    settings = {**FLOOR, "max_steps": 200, "entropy_floor": None}
    return Run.of(sed_trainer(tmp_path_factory.mktemp("ce"), **settings)).series("entropy")[-1]


@pytest.mark.parametrize("place", PLACES)
def test_entropy_stays_above_the_floor(tmp_path, place, entropy_without_a_floor):
    """Without the floor these steps end far below it."""
    assert entropy_without_a_floor < 0.6
    run = Run.of(floored(tmp_path, floor_place=place, max_steps=200, entropy_floor=1.0))
    entropies = run.series("entropy")
    late = sum(entropies[-20:]) / 20
    assert 0.9 < late < 2.0
    weights = run.series("floor_weight")
    assert weights[0] < 0.03 < weights[-1] < 2.0
    assert run.trainer.floor.probes[-1].entropy > 0.6


def test_a_floor_far_below_costs_nothing(tmp_path):
    """The weight stays 0: the run is the run without a floor, to the last bit."""
    plain = Run.of(sed_trainer(tmp_path / "a", **{**FLOOR, "entropy_floor": None}))
    run = Run.of(floored(tmp_path / "b", entropy_floor=0.01))
    assert run.series("loss") == plain.series("loss")
    assert run.series("floor_weight") == [0.0] * 4
    for name, value in plain.weights.items():
        assert torch.equal(run.weights[name], value)


@pytest.mark.parametrize("kind", ["full", "lora", "lora_with_head"])
def test_the_anchor_is_the_model_that_training_started_from(tmp_path, kind):
    """KL on the run's own batches equals that of full logits of the two models."""
    lora = {
        "full": None,
        "lora": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
        "lora_with_head": LoraConfig(
            r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], lora_dropout=0.1
        ),
    }[kind]
    base = tiny_model()
    trainer = floored(
        tmp_path,
        trainer={"peft_config": lora} if lora else None,
        max_steps=12,
        entropy_floor=5.0,
        floor_place="anchor",
    )
    trainer.train()
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    head = trainer._head
    head.weight = 0.5
    inner = trainer.model.get_base_model() if lora else trainer.model
    inner.training = True  # the term is of training; dropout, in the modules below, stays off
    with torch.no_grad():
        output = trainer.model(**batch, entropyfloor_head=True)
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        now, then = (m(**inputs).logits[:, :-1] for m in (trainer.model, base))
    labels = batch["labels"][:, 1:]
    request = head.term.extend(head.loss.request)
    wanted = token_statistics(now, labels, request=request, reference_logits=then).reference_kl
    assert wanted.sum() > 0.1
    torch.testing.assert_close(output.reference_kl, wanted, rtol=1e-4, atol=1e-5)
    assert (output.reference_kl[labels == IGNORE_INDEX] == 0).all()
    assert not any(module.training for module in inner.children())
    assert isinstance(trainer._head.reference(labels, **inputs), ReferenceHead)


def test_an_onset_anchor_is_the_model_that_came_near_the_floor(tmp_path):
    """Until then the run is the plain one, afterwards its weights of that step are the base."""
    settings = {"max_steps": 60, "entropy_floor": 2.0, "floor_probe_prompts": 0}
    run = Run.of(floored(tmp_path / "a", floor_place="onset_anchor", **settings))
    entropies, weights = run.series("floor_entropy"), run.series("floor_weight")
    onset = next(step for step, weight in enumerate(weights, start=1) if weight > 0)
    assert 1 < onset < 60
    assert all(entropy > 1.3 * 2.5 for entropy in entropies[: onset - 1])
    assert entropies[onset] < 1.4 * 2.5
    plain = {**FLOOR, **settings, "entropy_floor": None, "max_steps": onset}
    then = Run.of(sed_trainer(tmp_path / "b", **plain))
    assert then.series("loss") == run.series("loss")[:onset]
    for name, value in run.trainer._head.reference._snapshot.items():
        assert value.equal(then.weights[name])
    late = entropies[-10:]
    assert all(2.0 < entropy < 3.2 for entropy in late)


@pytest.mark.parametrize(
    ("lora", "place"), [(False, "anchor"), (True, "anchor"), (True, "onset_anchor")]
)
def test_resume_goes_on_exactly(tmp_path, lora, place):
    def trainer(folder, **config):
        extra = {"peft_config": LoraConfig(r=4, target_modules="all-linear")} if lora else None
        return floored(
            tmp_path / folder,
            trainer=extra,
            max_steps=24,
            entropy_floor=4.5,
            floor_place=place,
            floor_probe_steps=5,
            save_strategy="steps",
            save_steps=12,
            **config,
        )

    whole = Run.of(trainer("whole"))
    half = trainer("again")
    half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    again = [entry for entry in half.state.log_history if "loss" in entry][-12:]
    assert max(whole.series("floor_weight")) > 0
    for name in ("floor_weight", "floor_target", "floor_entropy", "loss"):
        assert [entry[name] for entry in again] == whole.series(name)[-12:]
    for name, value in half.model.named_parameters():
        assert torch.equal(value, whole.weights[name])
    assert [p.entropy for p in half.floor.probes] == [p.entropy for p in whole.trainer.floor.probes]


def test_resume_from_a_run_without_floor_is_refused(tmp_path):
    sed_trainer(tmp_path, loss="ce", save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="was not trained with an entropy floor"):
        floored(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.pictures
def test_checkpoints_carry_their_entropy(tmp_path):
    run = Run.of(
        floored(tmp_path, max_steps=20, save_strategy="steps", save_steps=10, floor_probe_steps=100)
    )
    probes = run.trainer.floor.probes
    assert [probe.step for probe in probes] == [10, 20]
    assert measured(tmp_path / "checkpoint-10") == probes[0]
    assert measured(tmp_path / "checkpoint-20") == probes[1]
    record = json.loads((tmp_path / "checkpoint-10" / "entropyfloor.json").read_text())
    assert record["floor"]["settings"]["floor"] == 3.0
    assert (tmp_path / "entropy_floor.png").stat().st_size > 10_000
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Entropy") == 1
    assert f"after step 20: {probes[1].entropy:.3f} nats (floor 3.0, constrain" in card
    (tmp_path / "checkpoint-20").rename(tmp_path / "checkpoint-best")  # no step's name
    assert last_above(tmp_path, 0.0).name == "checkpoint-10"
    assert last_above(tmp_path, 100.0) is None
    (tmp_path / "checkpoint-10" / "entropyfloor.json").write_text('{"version"')
    with pytest.raises(ValueError, match=r"entropyfloor\.json is not JSON"):
        last_above(tmp_path, 0.0)


def test_a_sharded_checkpoint_carries_its_record(tmp_path, monkeypatch):
    """Trainer saves no model where FSDP keeps a sharded state, and the run is resumed from that."""
    trainer = floored(tmp_path, floor_place="uniform")
    plugin = SimpleNamespace(state_dict_type="SHARDED_STATE_DICT")
    monkeypatch.setitem(trainer.accelerator.state.__dict__, "fsdp_plugin", plugin)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    trainer.save_model(str(tmp_path / "checkpoint-1"))
    assert [file.name for file in (tmp_path / "checkpoint-1").iterdir()] == ["entropyfloor.json"]
    assert read_record(tmp_path / "checkpoint-1")["floor"]["state"]["weight"] == 0.0


def test_checkpoints_by_epoch_carry_their_entropy(tmp_path):
    run = Run.of(
        floored(
            tmp_path,
            max_steps=-1,
            num_train_epochs=2,
            save_strategy="epoch",
            floor_probe_steps=100,
        )
    )
    assert [probe.step for probe in run.trainer.floor.probes] == [6, 12]
    assert measured(tmp_path / "checkpoint-6") == run.trainer.floor.probes[0]


def test_best_is_the_highest_pass_at_1_above_the_floor(tmp_path):
    passes = iter([0.9, 0.5, 0.7, 0.7])

    def reward(completions, **_):
        share = next(passes)
        return [float(i < share * len(completions)) for i in range(len(completions))]

    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(10)]
    trainer = floored(
        tmp_path,
        trainer={"probe_prompts": rows, "probe_reward": reward},
        max_steps=40,
        save_strategy="steps",
        save_steps=10,
        floor_probe_prompts=10,
        floor_probe_steps=100,
    )
    trainer.train()
    assert [probe.pass_at_1 for probe in trainer.floor.probes] == [0.9, 0.5, 0.7, 0.7]
    assert best_above(tmp_path, 0.0).name == "checkpoint-10"
    entropies = {p.step: p.entropy for p in trainer.floor.probes}
    # Without the first, the latest of equals.
    for step in (10,):
        record = tmp_path / f"checkpoint-{step}" / "entropyfloor.json"
        document = json.loads(record.read_text())
        document["floor"]["probes"][-1]["entropy"] = 0.01
        record.write_text(json.dumps(document))
    assert best_above(tmp_path, min(entropies.values())).name == "checkpoint-40"
    assert best_above(tmp_path, 100.0) is None


def test_best_without_a_reward(tmp_path):
    floored(tmp_path, save_strategy="steps", save_steps=4).train()
    with pytest.raises(ValueError, match="has no pass@1"):
        best_above(tmp_path, 0.0)


def test_a_reward_without_its_column(tmp_path):
    with pytest.raises(ValueError, match="answer"):
        floored(tmp_path, trainer={"probe_prompts": ["1 + 1 ="], "probe_reward": "exact_match"})


def test_stop_ends_training_and_restores(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run.of(
            floored(
                tmp_path,
                on_violation="stop",
                max_steps=80,
                save_strategy="steps",
                save_steps=5,
                floor_probe_steps=5,
            )
        )
    assert run.trainer.state.global_step < 80
    assert run.series("floor_weight") == [0.0] * len(run.steps)
    good = last_above(tmp_path, 3.0)
    assert good is not None
    assert f"restored {good.name}" in caplog.text
    restored = type(run.trainer.model).from_pretrained(good).state_dict()
    for name, value in run.trainer.model.state_dict().items():
        assert torch.equal(value, restored[name])
    run.trainer.save_model(tmp_path / "final")
    assert measured(tmp_path / "final").entropy >= 3.0


def test_warn_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run.of(floored(tmp_path, on_violation="warn", max_steps=40))
    assert run.trainer.state.global_step == 40
    assert "below the floor 3" in caplog.text
    assert run.series("floor_weight") == [0.0] * 40


def test_a_floor_above_what_is_possible_warns_and_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run.of(floored(tmp_path, entropy_floor=5.0, floor_max_weight=0.06, max_steps=90))
    assert "the entropy floor does not hold" in caplog.text
    assert run.series("floor_weight")[-1] == pytest.approx(0.06)
    assert all(torch.isfinite(value).all() for value in run.weights.values())


def test_without_prompts_it_says_that_only_teacher_forced_entropy_is_held(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = floored(tmp_path, trainer={"train_dataset": text_rows()})
    assert "no column 'prompt'" in caplog.text
    trainer.train()
    assert trainer.floor.probes == []
    given = floored(tmp_path, trainer={"train_dataset": text_rows(), "probe_prompts": ["row 1: "]})
    assert len(given.floor.probe.prompts) == 1


def test_no_more_prompts_are_probed_than_asked_for(tmp_path):
    texts = [f"row {i}: " for i in range(9)]
    for given in (texts, Dataset.from_dict({"prompt": texts})):
        trainer = floored(tmp_path, trainer={"probe_prompts": given}, floor_probe_prompts=6)
        assert trainer.floor.probe.prompts.prompts == texts[:6]
    with pytest.raises(ValueError, match="is the text 'row 0: '; give a list"):
        floored(tmp_path, trainer={"probe_prompts": texts[0]})


def test_probe_prompts_come_from_the_evaluation_set_first(tmp_path):
    held_out = prompt_completion_rows(30).select(range(24, 30))
    trainer = floored(tmp_path, trainer={"eval_dataset": held_out})
    assert trainer.floor.probe.prompts.prompts == held_out["prompt"][:4]


def test_prompts_of_a_streamed_set_are_found_after_map():
    """It does not know its columns then; looking at it takes no row away."""
    streamed = prompt_completion_rows(6).to_iterable_dataset().map(lambda row: {"n": 1})
    assert streamed.column_names is None
    assert prompts_of(streamed, 2).prompts == ["0 + 0 =", "1 + 1 ="]
    assert next(row["prompt"] for row in streamed) == "0 + 0 ="
    texts = text_rows(3).to_iterable_dataset().map(lambda row: {"n": 1})
    assert prompts_of(texts, 2) is None


def test_a_probe_that_does_not_fit_the_context_is_an_error_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"prompt 1 has 250 tokens.*context .* 256 tokens"):
        floored(tmp_path, trainer={"probe_prompts": ["1 + 1 =", "1" * 250]})


def test_the_probe_leaves_the_run_alone(tmp_path):
    """With a floor that never acts, probing at every step changes nothing."""
    quiet = Run.of(floored(tmp_path / "a", entropy_floor=0.01, floor_probe_prompts=0))
    probed = Run.of(floored(tmp_path / "b", entropy_floor=0.01, floor_probe_steps=1))
    assert len(probed.trainer.floor.probes) == 4
    assert probed.series("loss") == quiet.series("loss")
    for name, value in quiet.weights.items():
        assert torch.equal(probed.weights[name], value)


def test_the_interval_is_chosen_by_cost(tmp_path):
    trainer = floored(tmp_path, floor_probe_steps=None, max_steps=60)
    trainer.floor.probe_share = 1e-4  # far below what a probe of this toy takes of ten steps
    trainer.train()
    logged = [e["probe_share"] for e in trainer.state.log_history if "probe_share" in e]
    assert logged and all(0 < share < 1 for share in logged)
    assert trainer.floor._interval > 100
    assert [probe.step for probe in trainer.floor.probes] == [10, 60]  # the last step is always one


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"entropy_floor": -1.0}, "floor is -1.0"),
        ({"entropy_floor": 6.0}, "no distribution over 261 tokens"),
        ({"floor_place": "nowhere"}, "choose one of onset_anchor"),
        ({"on_violation": "panic"}, "choose one of constrain, stop, warn"),
        ({"floor_probe_steps": 0}, "floor_probe_steps is 0"),
        ({"floor_probe_prompts": -1}, "floor_probe_prompts is -1"),
        ({"floor_margin": -0.5}, "margin is -0.5"),
        ({"entropy_floor": "much"}, "entropy_floor is 'much'; give nats, or 'auto'"),
        ({"entropy_floor": True}, "entropy_floor is True; give nats"),  # as a YAML file may have it
        ({"entropy_floor": [0.2]}, r"entropy_floor is \[0\.2\]; give nats"),
        ({"floor_margin": "0.5"}, r"margin is '0\.5'; it must be a finite number"),
        ({"floor_probe_tokens": "64"}, "floor_probe_tokens is '64'; it must be an integer"),
        ({"entropy_floor": "auto", "floor_factor": 0.0}, "floor_factor is 0.0"),
        ({"entropy_floor": 0.2, "floor_factor": 2.0}, "multiply the number instead"),
        ({"entropy_floor": "auto", "floor_held_out_rows": 0}, "floor_held_out_rows is 0"),
    ],
)
def test_bad_settings(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        floored(tmp_path, **config)


@pytest.mark.parametrize("place", ["anchor", "onset_anchor"])
def test_an_anchor_needs_adapters_that_can_be_switched_off(tmp_path, place):
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="learns virtual tokens"):
        floored(tmp_path, trainer={"peft_config": tuning}, floor_place=place)
    floored(tmp_path, trainer={"peft_config": tuning}, floor_place="uniform")


def test_record_without_floor_is_as_before(tmp_path):
    sed_trainer(tmp_path, loss="ce", save_strategy="steps", save_steps=4).train()
    assert "floor" not in read_record(tmp_path / "checkpoint-4")


CACHED = {
    "entropy_floor": 5.0,
    "floor_place": "anchor",
    "max_steps": 12,
    "floor_probe_prompts": 0,
}


@pytest.mark.parametrize(
    "config",
    [{}, {"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}],
    ids=str,
)
def test_a_cache_of_the_whole_vocabulary_is_the_frozen_copy(tmp_path, config):
    """With k = V nothing is cut off: the same weights step by step, the same losses."""
    settings = {**CACHED, **config}
    copied = Run.of(floored(tmp_path / "copy", **settings))
    cached = Run.of(
        floored(
            tmp_path / "cache",
            reference_cache=str(tmp_path / "base"),
            reference_top_k=261,
            **settings,
        )
    )
    assert max(copied.series("reference_kl")) > 0.01
    for name in ("loss", "reference_kl", "floor_weight"):
        assert cached.series(name) == pytest.approx(copied.series(name), rel=1e-4, abs=1e-5)


def test_a_cache_of_few_tokens_lies_a_little_below_and_is_used_again(tmp_path, monkeypatch):
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    folder = str(tmp_path / "base")
    whole = Run.of(floored(tmp_path / "a", trainer=dict(lora), **CACHED))
    few = Run.of(
        floored(
            tmp_path / "b",
            trainer=dict(lora),
            **CACHED,
            reference_cache=folder,
            reference_top_k=64,
        )
    )
    pairs = list(zip(few.series("reference_kl")[1:], whole.series("reference_kl")[1:], strict=True))
    assert all(0 < low <= high * 1.01 for low, high in pairs)

    def called(*_, **__):
        raise AssertionError("computed again, or looked up by what is on the device")

    for function in ("write_cache", "documents_of"):
        monkeypatch.setattr(f"entropyfloor.sft.floor.reference_cache.{function}", called)
    again = Run.of(
        floored(
            tmp_path / "c",
            trainer=dict(lora),
            **CACHED,
            reference_cache=folder,
            reference_top_k=64,
        )
    )
    assert again.series("loss") == few.series("loss")
    with pytest.raises(ValueError, match="caches k 64 and this run has 8"):
        floored(tmp_path / "d", **CACHED, reference_cache=folder, reference_top_k=8).train()


ONSET = {
    "entropy_floor": 3.0,
    "floor_place": "onset_anchor",
    "max_steps": 40,
    "floor_probe_prompts": 0,
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_cache_of_the_whole_vocabulary_is_the_model_of_the_onset(tmp_path, lora):
    """Written in the middle of training, it does not disturb it."""

    def run(folder, **config):
        adapters = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
        extra = {"peft_config": adapters} if lora else None
        return Run.of(floored(tmp_path / folder, trainer=extra, **ONSET, **config))

    held = run("held")
    cached = run("cached", reference_cache=str(tmp_path / "base"), reference_top_k=261)
    assert held.series("floor_weight")[0] == 0 < held.series("floor_weight")[-1]
    assert max(held.series("reference_kl")) > 0.01
    for name in ("loss", "reference_kl", "floor_weight"):
        assert cached.series(name) == pytest.approx(held.series(name), rel=1e-3, abs=1e-4)


def test_an_onset_cache_is_of_one_run_and_resumes_with_it(tmp_path):
    settings = {**ONSET, "save_strategy": "steps", "save_steps": 5}
    cached = {"reference_cache": str(tmp_path / "base")}
    whole = Run.of(floored(tmp_path / "whole", **settings, **cached))
    weights = whole.series("floor_weight")
    onset = next(step for step, weight in enumerate(weights, start=1) if weight > 0)
    assert 6 < onset < 35
    for step in (5, 35):  # before it, from where it is written again; and after it
        half = floored(tmp_path / f"from-{step}", **settings, **cached)
        half.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        again = [entry["loss"] for entry in half.state.log_history if "loss" in entry]
        assert again == whole.series("loss")
        for name, value in half.model.state_dict().items():
            assert value.equal(whole.weights[name])
    with pytest.raises(ValueError, match="an onset's is of one run"):
        floored(tmp_path / "other", **settings, **cached).train()
    elsewhere = floored(tmp_path / "b", **settings, reference_cache=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="has no cache"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-35"))


def test_evaluation_is_of_the_loss_alone(tmp_path):
    """Also with a cache, which knows nothing of the evaluation set."""
    held_out = prompt_completion_rows(30).select(range(24, 30))
    trainer = floored(
        tmp_path,
        trainer={"eval_dataset": held_out},
        **CACHED,
        reference_cache=str(tmp_path / "base"),
    )
    trainer.train()
    assert trainer._head.weight > 0
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"], rel=1e-5)


def test_a_cache_of_other_data_or_another_base_is_refused(tmp_path):
    folder = str(tmp_path / "base")
    floored(tmp_path / "a", **CACHED, reference_cache=folder).train()
    other = {"train_dataset": prompt_completion_rows(40).select(range(20, 40))}
    with pytest.raises(ValueError, match="a row of the training set is not in"):
        floored(tmp_path / "b", trainer=other, **CACHED, reference_cache=folder).train()
    with pytest.raises(ValueError, match="caches reference"):
        floored(
            tmp_path / "c",
            trainer={"model": tiny_model("qwen2")},
            **CACHED,
            reference_cache=folder,
        ).train()
    with pytest.raises(ValueError, match="nothing would use it"):
        floored(tmp_path, reference_cache=folder, floor_place="uniform")
