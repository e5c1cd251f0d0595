import math

import pytest
import torch
from grpo_runs import DEMOS
from grpo_runs import joint as grpo
from transformers import TrainerCallback

from entropyfloor.rl.joint_trainer import JointGRPOTrainer
from entropyfloor.rl.prompt_rows import PromptRowsTrainer
from tiny_models import tiny_model


class Gradients(TrainerCallback):
    """Keep the gradients of the first step, as the optimizer gets them."""

    def __init__(self):
        self.found = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.found is None:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters()}


def joint(folder, weight, **changes):
    extra = {"sft_rows": DEMOS, "sft_weight": weight, "sft_batch_size": 3}
    return grpo(folder, trainer=JointGRPOTrainer, extra=extra, **changes)


def plain(folder, **changes):
    return grpo(folder, trainer=PromptRowsTrainer, **changes)


def gradients(make, folder, **changes):
    kept = Gradients()
    make(folder, callbacks=[kept], max_steps=1, max_grad_norm=1e9, **changes).train()
    return kept.found


def sft_gradients(rows):
    """Of the mean loss per token, from plain logits."""
    model = tiny_model()
    nats, tokens = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([[*row.prompt_ids, *row.ids]])).logits
        log_p = logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        nats = nats - log_p.gather(1, torch.tensor(row.ids)[:, None]).sum()
        tokens += len(row.ids)
    (nats / tokens).backward()
    return float(nats.detach() / tokens), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_is_the_sum_of_both_losses(tmp_path, accumulation):
    """Rows of unequal length: the SFT term is a mean over all tokens of the step."""
    options = {"gradient_accumulation_steps": accumulation}
    alone = gradients(plain, tmp_path / "a", **options)
    mixed = gradients(lambda *a, **k: joint(*a, 0.7, **k), tmp_path / "b", **options)
    trainer = joint(tmp_path / "c", 0.7, **options)
    trainer.current_gradient_accumulation_steps = accumulation
    share, tokens = trainer.sft_share(0)
    rows = [row for part in share for row in part]
    assert len(share) == accumulation and len(rows) == 3 * accumulation
    assert tokens == sum(len(row.ids) for row in rows)
    _, exact = sft_gradients(rows)
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient - alone[name], 0.7 * exact[name], rtol=2e-4, atol=2e-6)


def test_weight_zero_is_grpo_to_the_last_bit(tmp_path):
    runs = []
    for make in (lambda: plain(tmp_path / "a"), lambda: joint(tmp_path / "b", 0.0)):
        runs.append(make())  # seeds the random state that its training goes on with
        runs[-1].train()
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)
    assert not any("sft_loss_mixed" in entry for entry in runs[1].state.log_history)


def test_the_loss_is_logged_and_falls(tmp_path):
    run = joint(
        tmp_path,
        5.0,
        max_steps=12,
        gradient_accumulation_steps=2,
        reward=lambda completions, **_: [0.0] * len(completions),
    )
    run.current_gradient_accumulation_steps = 2
    value, _ = sft_gradients([row for part in run.sft_share(0)[0] for row in part])
    run.train()
    logged = [e["sft_loss_mixed"] for e in run.state.log_history if "sft_loss_mixed" in e]
    assert logged[0] == pytest.approx(value, rel=1e-4)
    assert logged[-1] < logged[0] - 0.5 and all(map(math.isfinite, logged))


def test_rows_follow_from_the_step(tmp_path):
    run = joint(tmp_path, 0.1)
    run.current_gradient_accumulation_steps = 1
    seen = [row.prompt_index for step in range(10) for row in run.sft_share(step)[0][0]]
    assert sorted(seen) == sorted([*range(10)] * 3)  # each demonstration once per epoch
    assert sorted(seen[:10]) == sorted(seen[10:20]) and seen[:10] != seen[10:20]
    again = joint(tmp_path, 0.1)
    again.current_gradient_accumulation_steps = 1
    assert again.sft_share(7) == run.sft_share(7)


def test_a_resumed_run_is_the_run(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = joint(tmp_path, 0.5, **options)
    whole.train()
    resumed = joint(tmp_path, 0.5, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="sft_weight must be 0 or positive"):
        joint(tmp_path, -1.0)
    with pytest.raises(ValueError, match=r"no 'completion'"):
        grpo(tmp_path, trainer=JointGRPOTrainer, extra={"sft_rows": [{"prompt": "a"}]})
    with pytest.raises(ValueError, match="sft_batch_size must be at least 1"):
        extra = {"sft_rows": DEMOS, "sft_batch_size": 0}
        grpo(tmp_path, trainer=JointGRPOTrainer, extra=extra)
