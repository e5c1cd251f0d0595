"""One whole update against an independent reference in float64: ragged groups, equal rewards."""

import copy
import math

import numpy as np
import pytest
import torch
from gft_runs import Recorder, gft, group_rows, ids_of, logged, reward_of
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from tiny_models import tiny_model

RATE = 0.5
CASES = {
    "default": {},
    "no_rectification": {"rectification": False},
    "tau": {"tau": 0.005},
    "dft": {"tau": 2.0},
    "centred": {"scale_rewards": "none"},
    "batch": {"scale_rewards": "batch"},
    "sample_deviation": {"advantage_ddof": 1},
    "weights": {"expert_weight": 2.0, "self_weight": 0.25, "other_weight": 0.0},
    "no_advantages": {"advantages": False},
    "few_sources": {"num_teacher": 0, "num_other": 0, "num_self": 1},
    "prompt_tuning": {"peft": PromptTuningConfig},
    "prefix_tuning": {"peft": PrefixTuningConfig},
}


def run(folder, *, peft=None, **changes):
    recorder, model = Recorder(), tiny_model()
    if peft is not None:
        model = get_peft_model(model, peft(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model = model.double()
    before = copy.deepcopy(model)
    trainer = gft(folder, rows=group_rows(4), reward=recorder, model=model, **changes)
    trainer.train()
    # The rows' responses are scored first, the policy samples of the step after them.
    of_dataset, of_policy = recorder.calls
    return trainer, before, of_dataset, of_policy


def groups_of(of_policy, *, num_teacher=3, num_other=1, num_self=4, **_):
    """(source, prompt ids, ids, reward) of each group, from the rows and what was sampled."""
    groups = []
    for number, row in enumerate(group_rows(4)):
        prompt, limits = row["prompt"], {"expert": 1, "teacher": num_teacher, "other": num_other}
        group = []
        for response in row["responses"]:
            if limits[response["source"]]:
                ids = [*ids_of(response["completion"]), 1]
                reward = reward_of(prompt, ids)
                group.append((response["source"], ids_of(prompt), ids, reward))
        for asked, ids, reward in of_policy[number * num_self : (number + 1) * num_self]:
            assert asked == prompt
            group.append(("self", ids_of(prompt), ids, reward))
        groups.append(group)
    return groups


def advantages_of(groups, *, scale_rewards="group", advantage_ddof=0, advantages=True, **_):
    everything = np.array([r for group in groups for *_, r in group])
    result = []
    for group in groups:
        rewards = np.array([r for *_, r in group])
        centred = rewards - rewards.mean()
        if not advantages:
            centred = np.ones_like(rewards)
        elif (rewards == rewards[0]).all():
            centred = np.zeros_like(rewards)
        elif scale_rewards == "group":
            centred = centred / (rewards.std(ddof=advantage_ddof) + 1e-4)
        elif scale_rewards == "batch":
            centred = centred / (everything.std(ddof=advantage_ddof) + 1e-4)
        result.append(centred)
    return result


def token_logs(model, prompt_ids, ids):
    logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0]
    return logits[-len(ids) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_update(tmp_path, case):
    options = CASES[case]
    trainer, model, of_dataset, of_policy = run(tmp_path, **options)
    groups = groups_of(of_policy, **options)
    advantages = advantages_of(groups, **options)
    tau = 0.0 if options.get("rectification") is False else options.get("tau", 0.7)
    assert 0.5 in {r for _, _, r in of_dataset}
    assert len({r for _, _, r in of_dataset}) > 2
    assert any(len({r for *_, r in group}) == 1 for group in groups)
    assert len({len(group) for group in groups}) > 1 or case == "few_sources"

    total = torch.zeros((), dtype=torch.float64)
    tokens, rectified, entropy = 0, {}, {}
    for group, values in zip(groups, advantages, strict=True):
        for (source, prompt_ids, ids, _), advantage in zip(group, values, strict=True):
            logs = token_logs(model, prompt_ids, ids)
            log_p = logs.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            p = log_p.detach().exp()
            weight = options.get(f"{source}_weight", 1.0)
            total = total - weight * advantage * (torch.where(p < tau, p, 1.0) * log_p).sum()
            tokens += len(ids)
            rectified.setdefault(source, []).extend((p < tau).tolist())
            entropy.setdefault(source, []).extend((-(logs.exp() * logs).sum(-1)).tolist())
    (total / tokens).backward()

    after = dict(trainer.model.named_parameters())
    moved = 0.0
    for name, parameter in model.named_parameters():
        step = (after[name] - parameter).detach()
        if not parameter.requires_grad:
            assert not step.any()
            continue
        moved = max(moved, float(step.abs().max()))
        torch.testing.assert_close(step, -RATE * parameter.grad, rtol=1e-9, atol=1e-14)
    assert moved > 1e-5

    (log,) = logged(trainer)
    assert log["loss"] == pytest.approx(float(total.detach()) / tokens, rel=1e-6, abs=1e-9)
    for source in ("expert", "teacher", "other", "self"):
        of_source = [
            (reward, advantage)
            for group, values in zip(groups, advantages, strict=True)
            for (s, *_, reward), advantage in zip(group, values, strict=True)
            if s == source
        ]
        if not of_source:
            assert f"{source}/reward" not in log
            continue
        rewards, coefficients = zip(*of_source, strict=True)
        assert log[f"{source}/reward"] == pytest.approx(np.mean(rewards))
        assert log[f"{source}/advantage"] == pytest.approx(np.mean(coefficients), abs=1e-9)
        assert log[f"{source}/tokens"] == len(entropy[source])
        assert log[f"{source}/rectified"] == pytest.approx(np.mean(rectified[source]))
        assert log[f"{source}/entropy"] == pytest.approx(np.mean(entropy[source]), rel=1e-9)
    flat = [{r for *_, r in group} for group in groups if len({r for *_, r in group}) == 1]
    assert log["groups/degenerate"] == len(flat) / 4
    assert log["groups/all_wrong"] == sum(max(f) < 1.0 for f in flat) / 4
    threshold = trainer.args.success_threshold
    apart = [[r >= threshold for *_, r in g] for g in groups if len({r for *_, r in g}) > 1]
    assert log["groups/outcome_degenerate"] == sum(len(set(p)) == 1 for p in apart) / 4
    assert log["groups/size"] == pytest.approx(np.mean([len(group) for group in groups]))


def test_equal_rewards_teach_nothing_and_the_rectified_share_is_one_without_confidence(tmp_path):
    rows = [row for row in group_rows(12) if row["prompt"].startswith("flat")]
    trainer = gft(tmp_path, rows=rows, max_steps=1)
    before = copy.deepcopy(trainer.model)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))
    (log,) = logged(trainer)
    assert log["groups/degenerate"] == log["groups/all_wrong"] == 1.0
    assert log["loss"] == 0.0
    assert log["self/rectified"] == 1.0
    assert 0 < log["self/entropy"] <= math.log(261)


def test_all_right_is_told_by_the_threshold(tmp_path):
    rows = [row for row in group_rows(12) if row["prompt"].startswith("flat")]
    trainer = gft(tmp_path, rows=rows, success_threshold=0.5)
    trainer.train()
    (log,) = logged(trainer)
    assert (log["groups/all_right"], log["groups/all_wrong"]) == (1.0, 0.0)
