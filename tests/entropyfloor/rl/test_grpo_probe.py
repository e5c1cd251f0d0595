"""Rewards that a trainer computes where the probe does not look, and hands out afterwards."""

from types import SimpleNamespace

import pytest
import torch

from entropyfloor.rl.group_counts import GroupCounts
from entropyfloor.rl.grpo_probe import GRPOProbe

REWARDS = {"right": [0.0, 0.0, 1.0, 0.0, 1.0, 1.0], "short": [0.5] * 6}


def trainer(processes=1):
    return SimpleNamespace(
        _calculate_rewards=lambda: torch.tensor(list(REWARDS.values())).T,
        compute_loss=lambda *_: None,
        _metrics={"train": {}},
        num_generations=2,
        reward_weights=torch.tensor([1.0, 1.0]),
        reward_func_names=list(REWARDS),
        accelerator=SimpleNamespace(num_processes=processes),
        model=SimpleNamespace(training=True),
    )


def outcome(counts):
    return counts.groups, counts.all_wrong, counts.all_right, counts.passed


@pytest.mark.parametrize("handed_out", ["computed here", "elsewhere", "both"])
def test_a_batch_is_counted_once(handed_out):
    watched = trainer()
    probe = GRPOProbe(watched)
    for batch in (1, 2):
        if handed_out != "elsewhere":
            watched._calculate_rewards()
        if handed_out != "computed here":
            probe.count_elsewhere(dict(reversed(REWARDS.items())))
        assert outcome(probe.counts) == (3 * batch, batch, batch, 3 * batch)


def test_what_one_of_several_processes_knows_is_not_counted():
    probe = GRPOProbe(trainer(processes=2))
    probe.count_elsewhere(REWARDS)
    assert probe.counts == GroupCounts()
