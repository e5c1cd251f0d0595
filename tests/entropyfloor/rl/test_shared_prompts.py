"""The step of `SharedPrompts` is trl's: loss, gradient, metrics; and costs less."""

import copy

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from grpo_runs import OPTIONS
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from entropyfloor.rl.prompt_rows import PromptRowsTrainer
from tiny_models import tiny_model, tiny_tokenizer

FUSED = hasattr(trl.trainer.utils, "add_fused_lm_head")
shares_prompts = pytest.mark.skipif(not FUSED, reason="trl has no fused head here")
ENDS = [1, *range(20, 60)]  # so many that random models end at different lengths
PROMPTS = ["1+2=", "12+34+56=", "7+", "99-1=#"]


def reward(completion_ids, **_):
    """The first group's rollouts all get the same."""
    return [0.5 if i < 4 else float(ids[0] % 2) for i, ids in enumerate(completion_ids)]


def trainer(folder, kind=PromptRowsTrainer, family="llama", peft_config=None, **changes):
    model = tiny_model(family)
    model.generation_config.eos_token_id = ENDS
    short = {"max_completion_length": 9, "max_steps": 2, "learning_rate": 1e-3, "top_k": 0}
    sizes = {"num_generations": 4, "per_device_train_batch_size": 16}
    made = kind(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(str(folder), **OPTIONS | sizes | short | changes),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )
    made.model_wrapped = made.model
    made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps
    return made


def rows():
    return [{"prompt": text} for text in PROMPTS for _ in range(4)]


def step(made, inputs):
    """Loss, gradients and logged numbers of one micro-batch."""
    made.model.train()
    made._metrics["train"].clear()
    loss = made._compute_loss(made.model, inputs)
    loss.backward()
    gradients = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, {k: v[-1] for k, v in made._metrics["train"].items()}


CASES = {
    "dapo": {},
    "qwen3": {"family": "qwen3"},
    "cohere": {"family": "cohere"},
    "granite": {"family": "granite", "loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo", "temperature": 0.7},
    "a KL term": {"beta": 0.1, "peft_config": LoraConfig(target_modules="all-linear")},
    "an entropy bonus": {"entropy_coef": 0.1},
    "truncated ones masked": {"mask_truncated_completions": True, "loss_type": "grpo"},
    "lora": {"peft_config": LoraConfig(target_modules="all-linear", init_lora_weights=False)},
}


@shares_prompts
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_are_trls(name, tmp_path):
    options = copy.deepcopy(CASES[name])
    torch.manual_seed(0)
    ours = trainer(tmp_path / "ours", **options)
    ours.model.train()
    inputs = ours._generate_and_score_completions(rows())
    lengths = inputs["completion_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2
    assert (inputs["advantages"][:4] == 0).all() and (inputs["advantages"] != 0).any()
    theirs = trainer(tmp_path / "theirs", GRPOTrainer, **options)
    theirs.model.load_state_dict(ours.model.state_dict())
    loss, gradients, metrics = step(ours, inputs)
    exact, reference, logged = step(theirs, inputs)
    assert loss == pytest.approx(exact, abs=1e-6)
    assert gradients.keys() == reference.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[parameter], rtol=1e-4, atol=1e-6)
    assert metrics == pytest.approx(logged, abs=1e-5)


def tokens_computed(made, inputs):
    """``[(tokens, with a gradient)]`` of every pass through the backbone."""
    passes = []
    hook = made.model.model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(
            (kwargs["input_ids"].numel(), out.last_hidden_state.requires_grad)
        ),
        with_kwargs=True,
    )
    step(made, inputs)
    hook.remove()
    return passes


@shares_prompts
def test_prompts_are_read_once_and_rows_without_advantage_only_forward(tmp_path):
    made = trainer(tmp_path)
    made.model.train()
    inputs = made._generate_and_score_completions(rows())
    lengths = inputs["completion_mask"].sum(1)
    passes = tokens_computed(made, inputs)
    idle = inputs["advantages"] == 0
    learning = sum(tokens for tokens, gradient in passes if gradient)
    looking = sum(tokens for tokens, gradient in passes if not gradient)
    different = len({tuple(ids) for ids in inputs["prompt_ids"][~idle].tolist()})
    width = max(map(len, PROMPTS))  # bytes are tokens
    assert learning <= different * (width - 1) + int((~idle).sum()) * int(lengths.max() + 1)
    assert learning < looking + learning < inputs["prompt_ids"].numel() + int(lengths.sum())
    inputs["advantages"].zero_()
    loss, gradients, _ = step(made, inputs)
    assert loss == 0.0 and gradients, "the graph is alive where nobody has an advantage"


def test_a_resumed_run_draws_what_the_run_would_have_drawn(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "shuffle_dataset": False}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, **options)
    torch.manual_seed(12345)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "draws", "shares"),
    [
        ({}, True, True),
        ({"repetition_penalty": 1.1}, False, True),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, False, True),
        ({"gradient_checkpointing": True}, True, False),
        ({"family": "gemma2"}, True, False),  # a sliding window
    ],
)
def test_what_is_left_to_trl(options, draws, shares, tmp_path, monkeypatch):
    called = []
    for name in ("_generate_single_turn", "_get_per_token_logps_and_entropies"):
        original = getattr(GRPOTrainer, name)

        def seen(*arguments, name=name, original=original, **keywords):
            called.append(name)
            return original(*arguments, **keywords)

        monkeypatch.setattr(GRPOTrainer, name, seen)
    trainer(tmp_path, max_steps=1, **{**options}).train()
    assert ("_generate_single_turn" not in called) == draws
    assert ("_get_per_token_logps_and_entropies" not in called) == (shares and FUSED)
