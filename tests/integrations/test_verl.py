"""verl's own SFT trainer with our loss, on a platform that is the CPU; and its RL's metrics.

verl has no engine for the CPU: ``verl_cpu.py`` tells it of one, by its own extension point.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs verl: make test-integrations")

import pandas
import reference
from frameworks import EXAMPLES, HERE
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl import DataProto
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from tiny_models import tiny_model, tiny_tokenizer

ROWS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    tiny_model("qwen2").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        [
            {"role": "user", "content": f"what is {i}?"},
            {"role": "assistant", "content": f"{i}, " * (1 + i % 3)},
        ]
        for i in range(ROWS)
    ]
    pandas.DataFrame({"messages": rows}).to_parquet(folder / "rows.parquet")
    return folder


def train(folder, name, loss=None, fused=True):
    """Two steps over all rows in micro-batches of two; losses, gradient norms and what it said."""
    run = folder / name
    run.mkdir()
    words = {
        "data.train_files": folder / "rows.parquet",
        "data.train_batch_size": ROWS,
        "data.micro_batch_size_per_gpu": 2,
        "data.use_dynamic_bsz": False,
        "data.num_workers": 0,
        "data.ignore_input_ids_mismatch": True,
        "model.path": folder / "model",
        "model.use_remove_padding": False,
        "model.enable_gradient_checkpointing": False,
        "+model.override_config.attn_implementation": "sdpa",
        "engine.strategy": "fsdp2",
        "+engine.mixed_precision.param_dtype": "fp32",
        "optim.lr": 0.01,
        "trainer.device": "cpu",
        "trainer.logger": "[console]",
        "trainer.total_training_steps": 2,
        "trainer.total_epochs": 2,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": run / "checkpoints",
    }
    if loss is not None:
        words |= {"model.external_lib": loss, "model.use_fused_kernels": fused}
    command = [
        "torchrun",
        "--standalone",
        "--nproc_per_node",
        "1",
        "-m",
        "verl.trainer.sft_trainer",
    ]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(
            [str(run), str(HERE), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
        ),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "OMP_NUM_THREADS": "1",
    }
    (run / "cross_entropy.py").write_text(
        "from entropyfloor.integrations.verl import train_with\ntrain_with('ce')\n"
    )
    result = subprocess.run(
        [*command, *(f"{key}={value}" for key, value in words.items())],
        env=environment,
        cwd=run,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    logged = re.findall(r"train/loss:(\S+) - train/grad_norm:(\S+)", result.stdout)
    return [tuple(map(float, step)) for step in logged], result


def first_loss(folder, formula):
    """The first step's loss in float64: the paper's formula on the rows as verl reads them."""
    config = OmegaConf.create(
        {"max_length": 128, "ignore_input_ids_mismatch": True, "pad_mode": "no_padding"}
    )
    rows = MultiTurnSFTDataset(str(folder / "rows.parquet"), tiny_tokenizer(), config)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64).eval()
    total, count = 0.0, 0
    for row in (rows[i] for i in range(len(rows))):
        with torch.no_grad():
            logits = model(row["input_ids"][None]).logits[0, :-1].numpy()
        scored = row["loss_mask"][1:].bool().numpy()
        total += formula(logits[scored], row["input_ids"][1:].numpy()[scored])[0].sum()
        count += scored.sum()
    return total / count


def test_cross_entropy_is_verl_s_own(folder):
    own, result = train(folder, "own")
    assert len(own) == 2, result.stdout[-4000:]
    ours, result = train(folder, "ce", "cross_entropy")
    assert len(ours) == 2, result.stdout[-4000:]
    np.testing.assert_allclose(ours, own, rtol=2e-6)
    assert ours[0][0] == pytest.approx(first_loss(folder, reference.ce), rel=2e-6)


def test_the_example_s_gem_is_the_paper_s(folder):
    ours, result = train(folder, "gem", "verl_loss")
    assert len(ours) == 2, result.stdout[-4000:]
    expected = first_loss(folder, lambda z, y: reference.gem(z, y, 0.7))
    assert ours[0][0] == pytest.approx(expected, rel=2e-6)
    assert abs(expected - first_loss(folder, reference.ce)) > 0.1


def test_a_forward_that_is_not_ours_is_an_error(folder):
    steps, result = train(folder, "unused", "verl_loss", fused=False)
    assert not steps and result.returncode != 0
    assert "set model.use_fused_kernels=true" in result.stdout


def test_tau_must_be_a_number():
    from entropyfloor.integrations.verl import train_with

    with pytest.raises(ValueError, match="pass a number"):
        train_with("sed")


def batch(scores, groups):
    """What verl's PPO trainer measures a step on."""
    rows, length = len(scores), 3
    token_scores = torch.zeros(rows, length)
    token_scores[:, -1] = torch.tensor(scores)
    ones = torch.ones(rows, length)
    tensors = {
        "token_level_scores": token_scores,
        "token_level_rewards": token_scores,
        "advantages": torch.zeros(rows, length),
        "returns": torch.zeros(rows, length),
        "prompts": ones.long(),
        "responses": ones.long(),
        "response_mask": ones,
        "attention_mask": torch.ones(rows, 2 * length).long(),
    }
    uid = np.array(groups, dtype=object)
    return DataProto(TensorDict(tensors, batch_size=rows), non_tensor_batch={"uid": uid})


def test_metrics_of_rl_hold_group_counts_and_the_collapse_rule():
    """As verl itself loads us: by the entry point, before its trainers import the functions."""
    from verl.trainer.ppo.metric_utils import compute_data_metrics
    from verl.utils.tracking import Tracking

    # Groups need not lie side by side: all wrong, all right, one of two.
    metrics = compute_data_metrics(
        batch([0.0, 1.0, 0.0, 0.0, 1.0, 1.0], ["a", "b", "c", "a", "b", "c"]), use_critic=False
    )
    assert metrics["groups/degenerate_fraction"] == pytest.approx(2 / 3)
    assert metrics["groups/degenerate_all_wrong"] == pytest.approx(1 / 3)
    assert metrics["groups/pass_rate"] == 0.5

    seen = []
    tracking = object.__new__(Tracking)
    tracking.logger = {"list": type("L", (), {"log": lambda _, data, step: seen.append(data)})()}
    for step, entropy in ((10, 2.0), (100, 1.5), (150, 0.5)):
        tracking.log({"actor/entropy": entropy}, step)
    assert [data.get("collapse/relative_drop") for data in seen] == [None, 0.25, 0.75]
    assert [data.get("collapse/collapsed") for data in seen] == [None, None, 1.0]
