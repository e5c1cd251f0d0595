"""GFTTrainer with adapters, an entropy floor, checkpointing, evaluation, and learning at all."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from gft_runs import gft, group_rows, ids_of, logged
from peft import LoraConfig

from entropyfloor import CollapseMonitor
from entropyfloor.sft.floor.probe import measured
from entropyfloor.sft.run_record import read_record
from tiny_models import tiny_model


def answers_six(completions, **_):
    return [float(completion.startswith("6")) for completion in completions]


def six_rows(count=4):
    wrong = [{"source": "teacher", "completion": text, "reward": None} for text in ("7.", "0")]
    right = [{"source": "expert", "completion": "6.", "reward": None}]
    return [{"prompt": f"{i}: 2*3=", "responses": right + wrong} for i in range(count)]


@pytest.mark.parametrize("lora", [False, True])
def test_the_model_learns_what_is_rewarded(tmp_path, lora):
    extra = {"peft_config": LoraConfig(r=8, target_modules="all-linear")} if lora else {}
    trainer = gft(
        tmp_path,
        rows=six_rows(),
        reward=answers_six,
        trainer=extra,
        max_steps=30,
        optim="adamw_torch",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        num_self=2,
        gradient_checkpointing=True,
    )
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert bool(frozen) == lora
    trainer.train()
    steps = logged(trainer)
    assert steps[0]["self/reward"] == 0.0
    assert steps[-1]["expert/nll"] < steps[0]["expert/nll"] - 1.5
    assert steps[0]["expert/advantage"] > 0 > steps[0]["teacher/advantage"]
    if not lora:  # the adapter of a random model, with its head frozen, needs more steps for that
        assert sum(step["self/reward"] for step in steps[-5:]) / 5 > 0.7
        # Confidence ends rectification: p_y of the expert's tokens passes tau.
        assert steps[0]["expert/rectified"] == 1.0 > steps[-1]["expert/rectified"]
    for name, value in frozen.items():
        assert torch.equal(value, trainer.model.get_parameter(name))


def test_the_collapse_monitor_reads_own_samples(tmp_path):
    monitor = CollapseMonitor("warn", early_step=1, late_step=3, tau_h=None)
    trainer = gft(tmp_path, max_steps=4, trainer={"callbacks": [monitor]})
    trainer.train()
    steps = logged(trainer)
    entropies = [step["self/entropy"] for step in steps]
    assert entropies != [step["expert/entropy"] for step in steps]
    assert [step["entropy"] for step in steps] == pytest.approx(
        entropies, rel=1e-2
    )  # by micro-batch
    # The monitor weighs micro-batches by their tokens, as the log of the source does.
    assert [h for _, h in monitor.memory.readings] == pytest.approx(entropies[:3], rel=1e-6)
    assert monitor.decision.verdict == "healthy" and monitor.counts.rollouts == 4 * 4 * 4


def test_the_collapse_monitor_needs_samples(tmp_path):
    trainer = gft(
        tmp_path, num_self=0, group_of_one="skip", trainer={"callbacks": [CollapseMonitor()]}
    )
    with pytest.raises(ValueError, match="samples nothing"):
        trainer.train()


def test_an_entropy_floor_beside_it(tmp_path):
    options = {
        "max_steps": 30,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "num_self": 2,
    }
    floor = {
        "entropy_floor": 3.0,
        "floor_place": "uniform",
        "floor_probe_prompts": 2,
        "floor_probe_tokens": 6,
        "floor_probe_steps": 5,
        "save_strategy": "steps",
        "save_steps": 30,
    }
    plain = gft(tmp_path / "plain", rows=six_rows(), reward=answers_six, **options)
    plain.train()
    held = gft(
        tmp_path / "held",
        rows=six_rows(),
        reward=answers_six,
        trainer={"probe_reward": answers_six},
        **options,
        **floor,
    )
    held.train()
    assert logged(plain)[-1]["self/entropy"] < 2.0 < 2.5 < logged(held)[-1]["self/entropy"]
    steps = logged(held)
    assert max(step["floor_weight"] for step in steps) > 0.05
    assert all(0 <= step["expert/rectified"] <= 1 for step in steps)
    last = measured(tmp_path / "held" / "checkpoint-30")
    assert last is not None and last.step == 30 and last.pass_at_1 is not None
    assert held.floor.probes[-1] == last
    assert "Mean next-token entropy" in (tmp_path / "held" / "README.md").read_text()
    record = read_record(tmp_path / "held" / "checkpoint-30")
    assert record["loss"] == "custom:GroupFineTuningLoss"


def test_evaluation_is_a_groups_loss_and_leaves_training_alone(tmp_path):
    from gft_runs import rollouts

    def run(folder, **options):
        trainer = gft(
            tmp_path / folder,
            rows=group_rows(8),
            max_steps=3,
            trainer={
                "rollout_func": rollouts,
                "eval_dataset": {"a": Dataset.from_list(group_rows(5))},
            },
            **options,
        )
        trainer.train()
        return trainer

    with_it = run("with", eval_strategy="steps", eval_steps=1, num_generations_eval=2)
    without = run("without", num_generations_eval=2)
    for mine, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    result = [e for e in with_it.state.log_history if "eval_a_loss" in e]
    assert len(result) == 3
    assert result[0]["eval_groups/size"] == pytest.approx(
        2 + sum(len(row["responses"]) for row in group_rows(5)) / 5
    )
    again = without.evaluate(Dataset.from_list(group_rows(5)))
    assert again["eval_loss"] == pytest.approx(result[-1]["eval_a_loss"])


def test_truncated_own_samples_can_be_kept_out_of_the_loss(tmp_path):
    from gft_runs import rollouts

    prompts = [{"prompt": text, "answer": 4} for text in ("2+2=", "1+3=")]
    for masked in (False, True):
        trainer = gft(
            tmp_path,
            rows=prompts,
            mask_truncated_completions=masked,
            trainer={"rollout_func": rollouts},
        )
        trainer.train()
        # Samples 0 and 2 have one and three tokens and no end; 1 and 3 have 3 and 5 with it.
        assert logged(trainer)[0]["self/tokens"] == 2 * (8 if masked else 12)


def test_mixture_of_experts_balances_its_router(tmp_path):
    trainer = gft(
        tmp_path, model=tiny_model("mixtral", output_router_logits=False), rows=group_rows(4)
    )
    assert trainer.aux_loss_enabled
    trainer.train()
    (log,) = logged(trainer)
    assert log["aux_loss"] > 0
    flat = [row for row in group_rows(12) if row["prompt"].startswith("flat")]
    alone = gft(tmp_path, model=tiny_model("mixtral", output_router_logits=False), rows=flat[:2])
    alone.train()
    (log,) = logged(alone)
    assert log["loss"] == pytest.approx(alone.router_aux_loss_coef * log["aux_loss"], rel=1e-5)


def test_router_logits_in_every_forward_are_refused_where_they_break_generation(tmp_path):
    with pytest.raises(ValueError, match=r"output_router_logits.*cannot generate"):
        gft(tmp_path, model=tiny_model("mixtral"))
    gft(tmp_path, model=tiny_model("mixtral"), num_self=0, group_of_one="skip").train()


def test_half_precision_trains(tmp_path):
    trainer = gft(tmp_path, bf16=True, max_steps=2)
    trainer.train()
    full = gft(tmp_path, max_steps=2)
    full.train()
    assert logged(trainer)[0]["expert/nll"] == pytest.approx(
        logged(full)[0]["expert/nll"], rel=2e-2
    )
    assert len(ids_of("ab")) == 2


def test_the_table_of_completions_has_the_advantages_that_were_used(tmp_path):
    trainer = gft(tmp_path, rows=group_rows(4), log_completions=True, report_to="none")
    trainer.train()
    table = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    assert len(table) == 4 * 4
    # Not centred among the policy samples alone, as trl's are: the groups have other responses too.
    means = table.groupby("prompt")["advantage"].mean()
    assert (means[~means.index.str.startswith("flat")].abs() > 1e-3).any()
    (log,) = logged(trainer)
    assert table["advantage"].mean() == pytest.approx(log["self/advantage"])
