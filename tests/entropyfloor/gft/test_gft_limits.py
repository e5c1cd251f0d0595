"""GFT's exact limits: cross-entropy, DFT and GRPO, against trl's own trainers and SEDTrainer."""

import pytest
import torch
from datasets import Dataset
from gft_runs import Recorder, gft, group_rows, logged, rollouts
from sft_runs import arguments, build
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

from entropyfloor import SEDConfig, SEDTrainer
from tiny_models import tiny_model, tiny_tokenizer

STEPS = {
    "max_steps": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.3,
    "max_grad_norm": 0.0,
}


def assert_same_weights(ours, theirs, tolerance=2e-6):
    other = dict(theirs.model.named_parameters())
    start = dict(tiny_model().named_parameters())
    moved = 0.0
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, other[name], rtol=tolerance, atol=tolerance)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 2e-4


def sft_on(folder, rows, trainer_class, config_class=None, **config):
    flat = [
        {"prompt": row["prompt"], "completion": response["completion"]}
        for row in rows
        for response in row["responses"]
    ]
    args = arguments(
        folder,
        config_class or SEDConfig,
        **STEPS,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=2 * len(flat) // len(rows),
        **config,
    )
    trainer = build(trainer_class, args, train_dataset=Dataset.from_list(flat))
    trainer.train()
    return trainer


def experts(count=12):
    return [{**row, "responses": row["responses"][:1]} for row in group_rows(count)]


@pytest.mark.parametrize("loss", ["ce", "dft", "dcr"])
def test_one_expert_response_is_supervised_fine_tuning(tmp_path, loss):
    from trl import SFTConfig

    taus = {"ce": {"tau": 0.0}, "dft": {"tau": 1.5}, "dcr": {}}
    ours = gft(tmp_path, rows=experts(), num_self=0, group_of_one="imitate", **STEPS, **taus[loss])
    ours.train()
    if loss == "ce":
        theirs = sft_on(tmp_path / "sft", experts(), SFTTrainer, SFTConfig)
    else:
        theirs = sft_on(tmp_path / "sft", experts(), SEDTrainer, loss=loss)
    assert_same_weights(ours, theirs)
    for mine, other in zip(logged(ours), logged(theirs), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["groups/of_one"] == mine["expert/advantage"] == 1.0
        assert mine["num_tokens"] == other["num_tokens"]


def test_without_advantages_the_rows_responses_are_all_imitated(tmp_path):
    rows = [{**row, "responses": (row["responses"][:1] * 3)[:2]} for row in group_rows(12)]
    rows = [
        {
            **row,
            "responses": [
                row["responses"][0],
                {**row["responses"][1], "source": "teacher", "completion": " or not."},
            ],
        }
        for row in rows
    ]
    ours = gft(tmp_path, rows=rows, num_self=0, advantages=False, **STEPS)
    ours.train()
    assert_same_weights(ours, sft_on(tmp_path / "sft", rows, SEDTrainer, loss="dcr"))


def test_own_samples_alone_are_a_policy_gradient_with_group_normalised_rewards(tmp_path):
    """trl's GRPO on the same rollouts: on policy its ratio is 1, and its gradient is ours."""
    prompts = [{k: row[k] for k in ("prompt", "answer")} for row in group_rows(12)]
    extra = {"trainer": {"rollout_func": rollouts}}
    ours = gft(tmp_path, rows=prompts, tau=0.0, advantage_ddof=1, **STEPS, **extra)
    ours.train()
    args = GRPOConfig(
        str(tmp_path / "grpo"),
        **STEPS,
        optim="sgd",
        per_device_train_batch_size=8,
        num_generations=4,
        loss_type="dapo",
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    theirs = GRPOTrainer(
        tiny_model(),
        Recorder(),
        args,
        Dataset.from_list(prompts),
        processing_class=tiny_tokenizer(),
        rollout_func=rollouts,
    )
    theirs.train()
    assert_same_weights(ours, theirs, tolerance=1e-5)
    for mine, other in zip(logged(ours), logged(theirs), strict=True):
        assert mine["reward"] == pytest.approx(other["reward"])
        assert mine["self/reward"] == pytest.approx(other["reward"])
        assert mine["groups/degenerate"] == pytest.approx(other["frac_reward_zero_std"])
        assert "frac_reward_zero_std" not in mine
        assert mine["num_tokens"] == other["num_tokens"]
