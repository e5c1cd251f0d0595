"""The one-line swap: SEDTrainer(loss="ce") is SFTTrainer, loss by loss, to 1e-6 in fp32.

Every test runs one function twice; the only difference is the class that is called.
"""

import pytest
from peft import LoraConfig, PromptTuningConfig
from sft_runs import (
    Run,
    arguments,
    assert_same_run,
    build,
    conversation_rows,
    needs_mended_trl,
    needs_sft_trainer,
    prompt_completion_rows,
    sed_trainer_with_ce,
    text_rows,
)
from trl import SFTConfig, SFTTrainer

from entropyfloor import SEDConfig, SEDTrainer
from tiny_models import tiny_model, tiny_tokenizer

pytestmark = needs_sft_trainer


def train_both(tmp_path, *, family="llama", model=None, trainer=None, **config):
    """``trainer`` returns fresh trainer arguments, ``config`` goes to SFTConfig."""

    def script(trainer_class, name):
        return Run.of(
            build(
                trainer_class,
                arguments(tmp_path / name, **config),
                model=tiny_model(family, **(model or {})),
                **(trainer() if trainer else {}),
            )
        )

    return script(sed_trainer_with_ce, "sed"), script(SFTTrainer, "sft")


def test_one_line_swap(tmp_path):
    """A user's script with trl's defaults: AdamW, gradient checkpointing."""

    def script(trainer_class):
        trainer = trainer_class(
            model=tiny_model(),
            args=SFTConfig(
                str(tmp_path),
                max_steps=3,
                logging_steps=1,
                bf16=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
            ),
            train_dataset=prompt_completion_rows(),
            processing_class=tiny_tokenizer(),
        )
        return Run.of(trainer)

    assert_same_run(script(sed_trainer_with_ce), script(SFTTrainer))


def test_own_config_is_the_same_run(tmp_path):
    ours = Run.of(build(SEDTrainer, arguments(tmp_path, SEDConfig, loss="ce")))
    assert_same_run(ours, Run.of(build(SFTTrainer, arguments(tmp_path))))
    for step in ours.steps:
        assert step["ce"] == pytest.approx(step["loss"], rel=1e-6)
        assert step["penalty"] == pytest.approx(0.0, abs=2e-6)
        assert step["selected_fraction"] == 0.0
        assert 0.0 < step["top_k_mass"] <= 1.0


def peft(**options):
    """With an evaluation: an adapter's virtual tokens or copied head count there too."""
    kind = PromptTuningConfig if "num_virtual_tokens" in options else LoraConfig
    return {
        "model": {"tie_word_embeddings": False},
        "trainer": lambda: {
            "peft_config": kind(task_type="CAUSAL_LM", **options),
            "eval_dataset": prompt_completion_rows(6),
        },
        "eval_strategy": "steps",
        "eval_steps": 2,
    }


def packed(strategy):
    return {
        "trainer": lambda: {"train_dataset": text_rows(48), "eval_dataset": text_rows(12)},
        "packing": True,
        "packing_strategy": strategy,
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }


def on(rows):
    return {"trainer": lambda: {"train_dataset": rows()}}


ACCUMULATED = {
    "gradient_accumulation_steps": 3,
    "per_device_train_batch_size": 2,
    "max_grad_norm": 0.5,
}
CASES = {
    # GPT-2 trains with dropout 0.1: the same losses mean the same random numbers, too.
    **{name: {"family": name} for name in ("llama", "gpt2", "gemma2", "cohere", "granite")},
    "lora": peft(r=4),
    "all-linear": peft(r=4, lora_dropout=0.1, target_modules="all-linear"),
    "modules_to_save": peft(r=4, target_modules="all-linear", modules_to_save=["lm_head"]),
    "prompt-tuning": peft(num_virtual_tokens=4),
    **{name: packed(name) for name in ("bfd", "bfd_split", "wrapped")},
    "padding-free": {"padding_free": True, "max_length": None},
    "accumulated": {**ACCUMULATED, "average_tokens_across_devices": True},
    "accumulated by process": {**ACCUMULATED, "average_tokens_across_devices": False},
    **{
        name: {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": name == "reentrant"},
        }
        for name in ("reentrant", "not reentrant")
    },
    "assistant only": {**on(conversation_rows), "assistant_only_loss": True},
    "completion only": {"completion_only_loss": True},
    "prompt and completion": {"completion_only_loss": False},
    "text": on(text_rows),
    "streamed": on(lambda: prompt_completion_rows().to_iterable_dataset()),
}
# trl below 1.15 leaves out Granite's logits_scaling.
MARKS = {"granite": needs_mended_trl}


@pytest.mark.parametrize("case", [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def test_the_same_run(tmp_path, case):
    assert_same_run(*train_both(tmp_path, **CASES[case]))


@needs_mended_trl
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("coefficient", [None, 0.5, 0.0])
def test_mixture_of_experts(tmp_path, family, coefficient):
    ours, theirs = train_both(
        tmp_path, family=family, router_aux_loss_coef=coefficient, gradient_accumulation_steps=2
    )
    assert_same_run(ours, theirs)
    assert ("aux_loss" in ours.steps[0]) == (coefficient != 0.0)


def test_modules_to_save_trains_the_copy_of_the_head(tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"])
    trainer = build(
        sed_trainer_with_ce,
        arguments(tmp_path),
        model=tiny_model(tie_word_embeddings=False),
        peft_config=config,
    )
    head = trainer.model.get_base_model().lm_head
    before = head.weight.detach().clone()
    Run.of(trainer)
    assert not head.weight.equal(before)
    assert head.original_module.weight.equal(before)


def test_evaluation(tmp_path):
    ours, theirs = train_both(
        tmp_path,
        trainer=lambda: {"eval_dataset": prompt_completion_rows(10)},
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        per_device_eval_batch_size=4,  # 4 + 4 + 2 rows: the last batch is smaller
    )
    assert_same_run(ours, theirs)
    assert len(ours.evaluations) == 3
    for name in ("ce", "penalty", "selected_fraction", "top_k_mass", "entropy"):
        assert f"eval_{name}" in ours.evaluations[0]


def test_several_evaluation_sets(tmp_path):
    sets = {"few": prompt_completion_rows(4), "more": prompt_completion_rows(10)}
    ours, theirs = train_both(
        tmp_path, trainer=lambda: {"eval_dataset": sets}, eval_strategy="steps", eval_steps=4
    )
    for name in sets:
        mine = [e for e in ours.trainer.state.log_history if f"eval_{name}_loss" in e]
        other = [e for e in theirs.trainer.state.log_history if f"eval_{name}_loss" in e]
        assert len(mine) == len(other) == 1
        assert mine[0][f"eval_{name}_loss"] == pytest.approx(other[0][f"eval_{name}_loss"], 1e-6)


@needs_mended_trl  # its loss head hands over counts in place of logits before
def test_compute_metrics_gets_the_models_logits(tmp_path):
    def compute_metrics(prediction):
        return {"largest": float(prediction.predictions.max())}

    ours, theirs = train_both(
        tmp_path,
        trainer=lambda: {
            "eval_dataset": prompt_completion_rows(4),
            "compute_metrics": compute_metrics,
        },
        eval_strategy="steps",
        eval_steps=4,
    )
    assert_same_run(ours, theirs)
    assert ours.evaluations[0]["eval_largest"] > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_from_a_checkpoint(tmp_path, accumulation):
    """Steps 3 and 4 of a resumed run are those of the uninterrupted one, and SFTTrainer's."""
    config = {
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
    }

    def whole(trainer_class, name):
        return Run.of(
            build(trainer_class, arguments(tmp_path / name, **config), model=tiny_model("gpt2"))
        )

    def resumed(trainer_class, name):
        trainer = build(
            trainer_class, arguments(tmp_path / name, **config), model=tiny_model("gpt2", seed=1)
        )
        return Run.of(trainer, resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))

    ours, theirs = whole(sed_trainer_with_ce, "sed"), whole(SFTTrainer, "sft")
    assert_same_run(ours, theirs)
    again = resumed(sed_trainer_with_ce, "sed")
    assert again.series("loss") == ours.series("loss")
    assert_same_run(again, resumed(SFTTrainer, "sft"))


def test_checkpoint_of_sft_trainer_continues_in_sed_trainer(tmp_path):
    """The swap also works half-way: checkpoints have one format."""
    config = {"save_strategy": "steps", "save_steps": 2}
    theirs = Run.of(build(SFTTrainer, arguments(tmp_path, **config)))
    trainer = build(sed_trainer_with_ce, arguments(tmp_path, **config), model=tiny_model(seed=1))
    ours = Run.of(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert ours.series("loss") == pytest.approx(theirs.series("loss"), rel=1e-6)


def test_bf16_autocast(tmp_path):
    """The same products, rounded to bf16 (8 bits) elsewhere: logits near 1 move by 2^-9."""
    ours, theirs = train_both(tmp_path, bf16=True)
    assert_same_run(ours, theirs, loss=1e-3, others=2e-2)
