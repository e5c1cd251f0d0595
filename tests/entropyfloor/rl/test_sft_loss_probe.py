import json
import math
from types import SimpleNamespace

import pytest
import torch
from grpo_runs import DEMOS
from grpo_runs import joint as grpo

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rl import sft_loss_probe
from entropyfloor.rl.joint_trainer import JointGRPOTrainer
from entropyfloor.rl.sft_loss_probe import SFTLossProbe
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.teacher_forced import encode_held_out, held_out_loss
from tiny_models import tiny_model, tiny_tokenizer


def sft_loss(model):
    tokenizer = tiny_tokenizer()
    rows = encode_held_out(DEMOS, encode_prompts(DEMOS, tokenizer, where=""), tokenizer)
    sums = held_out_loss(LoadedCheckpoint("", "", model.eval(), tokenizer), rows, num_prompts=10)
    return sum(sums.sums) / sum(sums.tokens)


def test_tracks_the_loss_and_changes_nothing(tmp_path):
    probe = SFTLossProbe(DEMOS, every=2)
    runs = []
    for callbacks in ([probe], []):
        run = grpo(tmp_path / str(len(runs)), max_steps=4, callbacks=callbacks)
        run.train()
        runs.append(run)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)
    assert [p["step"] for p in probe.probes] == [0, 2, 4]
    assert probe.probes[0]["sft_loss"] == pytest.approx(sft_loss(tiny_model()), rel=1e-6)
    assert probe.probes[-1]["sft_loss"] == pytest.approx(sft_loss(runs[0].model), rel=1e-6)
    # The reward is what trl logged since the probe before; the balance follows.
    rewards = [e["reward"] for e in runs[0].state.log_history if "reward" in e]
    assert [p["reward"] for p in probe.probes] == pytest.approx(
        [rewards[0], rewards[1], sum(rewards[2:]) / 2]
    )
    rise = probe.probes[2]["sft_loss"] - probe.probes[0]["sft_loss"]
    assert probe.probes[2]["balance"] == pytest.approx(probe.probes[2]["reward"] - rise)
    logged = [e["sft_loss"] for e in runs[0].state.log_history if "sft_loss" in e]
    assert logged == [p["sft_loss"] for p in probe.probes[1:]]
    lines = (tmp_path / "0" / "sft_loss_probe.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == probe.probes
    assert probe.acted_at is None and probe.message == ""


def test_stops_at_the_threshold(tmp_path):
    """A large step size ruins the SFT loss: the balance was best before the first step."""
    probe = SFTLossProbe(DEMOS, every=1, policy="stop", weight=100.0, patience=2)
    run = grpo(tmp_path, max_steps=12, learning_rate=2e-2, callbacks=[probe])
    run.train()
    assert run.state.global_step == probe.acted_at < 12
    balances = [p["balance"] for p in probe.probes]
    assert balances.index(max(balances)) == len(balances) - 3  # two probes below the best
    assert probe.best_step == probe.probes[-3]["step"]
    assert f"best at step {probe.best_step}" in probe.message and "training stops" in probe.message


def test_mixes_sft_in(tmp_path):
    options = {"max_steps": 8, "learning_rate": 2e-2}
    extra = {"sft_rows": DEMOS, "sft_weight": 0.0}
    losses = {}
    for policy in ("track", "mix"):
        probe = SFTLossProbe(
            DEMOS, every=1, policy=policy, weight=100.0, patience=1, mix_weight=20.0
        )
        run = grpo(
            tmp_path / policy,
            trainer=JointGRPOTrainer,
            extra=dict(extra),
            callbacks=[probe],
            **options,
        )
        run.train()
        losses[policy] = probe.probes[-1]["sft_loss"]
        assert probe.acted_at is not None and run.state.global_step == 8
        assert run.sft_weight == (20.0 if policy == "mix" else 0.0)
    assert losses["mix"] < losses["track"] - 0.5


def test_a_resumed_run_remembers(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    extra = {"sft_rows": DEMOS, "sft_weight": 0.0}

    def run():
        probe = SFTLossProbe(DEMOS, every=1, policy="mix", weight=1e4, patience=1)
        trainer = grpo(
            tmp_path, trainer=JointGRPOTrainer, extra=dict(extra), callbacks=[probe],
            learning_rate=2e-2, **options,
        )  # fmt: skip
        return probe, trainer

    probe, trainer = run()
    trainer.train()
    assert probe.acted_at == 1 or probe.acted_at == 2
    again, resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.acted_at == probe.acted_at and resumed.sft_weight == 0.1
    assert [p["step"] for p in again.probes] == [0, 1, 2, 3, 4]
    assert again.probes[:3] == probe.probes[:3]
    assert again.probes[4]["sft_loss"] == pytest.approx(probe.probes[4]["sft_loss"], rel=1e-4)
    lines = (tmp_path / "sft_loss_probe.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_a_loss_that_is_nan_is_never_the_best_and_the_log_stays_json(tmp_path, monkeypatch):
    probe = SFTLossProbe(DEMOS, every=1, policy="stop", patience=2)

    def rotten(checkpoint, *_, **__):
        return SimpleNamespace(sums=[1.0 if len(probe.probes) < 2 else math.nan], tokens=[1])

    monkeypatch.setattr(sft_loss_probe, "held_out_loss", rotten)
    run = grpo(tmp_path, max_steps=8, callbacks=[probe])
    run.train()
    assert probe.best_step in (0, 1) and run.state.global_step == probe.acted_at < 8
    lines = (tmp_path / "sft_loss_probe.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines) and json.loads(lines[-1])["sft_loss"] is None


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="needs a trainer that has an SFT loss"):
        grpo(tmp_path, callbacks=[SFTLossProbe(DEMOS, policy="mix")]).train()
    with pytest.raises(ValueError, match="unknown policy 'halt'"):
        SFTLossProbe(DEMOS, policy="halt")
    with pytest.raises(ValueError, match="no 'completion'"):
        SFTLossProbe([{"prompt": "a"}])
    for name in ("every", "patience"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            SFTLossProbe(DEMOS, **{name: 0})
    with pytest.raises(ValueError, match="mix_weight must be positive"):
        SFTLossProbe(DEMOS, mix_weight=0.0)
