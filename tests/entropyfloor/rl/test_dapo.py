"""The paper's options, what contradicts, and LoRA on all linear layers and the embeddings."""

import warnings

import pytest
import torch
from grpo_runs import Recorder, prompt_rows, settings
from peft import get_peft_model
from transformers.pytorch_utils import Conv1D
from trl import GRPOConfig, GRPOTrainer

from entropyfloor.rl.dapo import dapo_config, paper_lora
from tiny_models import tiny_model, tiny_tokenizer

CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}


def test_the_papers_options(tmp_path):
    config = dapo_config(tmp_path, **CPU)
    assert isinstance(config, GRPOConfig)
    expected = {
        "num_generations": 8,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "loss_type": "dapo",
        "learning_rate": 1e-6,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_steps": 400,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.save_steps < config.max_steps


def test_everything_of_trl_is_open(tmp_path):
    config = dapo_config(
        tmp_path,
        num_generations=4,
        loss_type="grpo",
        use_adaptive_entropy=True,
        entropy_target=0.3,
        importance_sampling_level="sequence",
        scale_rewards="batch",
        num_train_epochs=2,
        **CPU,
    )
    assert config.entropy_target == 0.3
    assert (config.max_steps, config.num_train_epochs) == (-1, 2)
    assert dapo_config(tmp_path, loss_type="cispo", epsilon_high=5.0, **CPU).epsilon_high == 5.0
    assert dapo_config(tmp_path, epsilon_high=None, **CPU).epsilon_high is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_generation": 4}, "no setting 'num_generation'; did you mean num_generations"),
        ({"epsilon_high": 0.1}, "below epsilon 0.2"),
        ({"loss_type": "cispo"}, "caps the probability ratio itself"),
        ({"loss_type": "sapo", "epsilon_high": 0.3}, "does not clip"),
        ({"delta": 1.1}, "inside the clipping range, which ends at 1 \\+ epsilon_high = 1.28"),
        ({"importance_sampling_level": "sequence"}, "weights a rollout by its length"),
        ({"entropy_target": 0.3}, "entropy_target only act"),
        (
            {"use_adaptive_entropy": True, "entropy_coef_min": 0.5, "entropy_coef_max": 0.1},
            "entropy_coef_min 0.5 is above",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch"},
            "scale_rewards='batch' has no effect",
        ),
        ({"max_steps": 10, "num_train_epochs": 2}, "max_steps 10 wins"),
        ({"sync_ref_model": True}, "needs a reference model"),
        ({"vllm_mode": "server"}, "vllm_mode only act with use_vllm=True"),
    ],
)
def test_contradictions(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        dapo_config(tmp_path, **{**CPU, **options})


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_paper_lora(tmp_path, family):
    model = tiny_model(family)
    config = paper_lora(model, r=4, lora_dropout=0.1)
    assert (config.lora_alpha, config.r, config.lora_dropout) == (128, 4, 0.1)
    names = dict(model.named_modules())
    targets = {name for name in names if name in config.target_modules}
    head = model.get_output_embeddings()
    linear = {
        name
        for name, module in names.items()
        if type(module) in (torch.nn.Linear, Conv1D) and module is not head
    }
    embeddings = {n for n, m in names.items() if m is model.get_input_embeddings()}
    assert linear | embeddings == targets
    model.save_pretrained(tmp_path)
    assert paper_lora(tmp_path, r=4).target_modules == config.target_modules


def test_paper_lora_trains(tmp_path):
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(tiny_model(), paper_lora(model, r=4))
    assert any("embed_tokens" in n for n, p in wrapped.named_parameters() if p.requires_grad)
    trainer = GRPOTrainer(
        model,
        reward_funcs=Recorder(),
        args=settings(tmp_path, max_steps=2, learning_rate=1e-2),
        train_dataset=prompt_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=paper_lora(model, r=4),
    )
    trainer.train()
    moved = [n for n, p in trainer.model.named_parameters() if "lora_B" in n and p.abs().max() > 0]
    assert any("q_proj" in name for name in moved)
