"""Two processes (gloo, CPU): both see the pooled groups and entropies, and decide alike."""

import json
from pathlib import Path

import pytest
from grpo_runs import steps_of
from grpo_two_process_run import GROUP

from two_processes import two_processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with two_processes(str(Path(__file__).with_name("grpo_two_process_run.py")), folder):
        pass
    result = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in "01"]
    return folder / "output-0", result


def test_one_process_writes_the_monitors_files(ranks):
    _, (first, second) = ranks
    logs = {"collapse_monitor.jsonl", "collapse_monitor.png", "sft_loss_probe.jsonl"}
    assert logs | {"checkpoint-2/trainer_state.json"} <= set(first["files"])
    assert {Path(file).name for file in second["files"]} == {"rng_state_1.pth"}


def test_both_ranks_decide_alike(ranks):
    _, (first, second) = ranks
    assert first["memory"] == second["memory"]
    assert first["stopped"] == second["stopped"]
    drop = first["memory"]["decision"]["drop"]
    assert first["stopped"] == (3 if drop > 1e-9 else 4)


def test_groups_are_those_of_both_ranks(ranks):
    folder, (first, second) = ranks
    assert len(first["calls"]) == len(second["calls"]) == first["stopped"]
    wrong = right = passed = groups = 0
    for mine, other in zip(first["calls"], second["calls"], strict=True):
        pooled = mine + other  # gathered in rank order
        for start in range(0, len(pooled), GROUP):
            group = pooled[start : start + GROUP]
            assert len({prompt for prompt, _ in group}) == 1
            values = [reward for _, reward in group]
            groups += 1
            wrong += not any(values)
            right += all(values)
            passed += sum(values)
    counts = first["memory"]["counts"]
    assert (counts["groups"], counts["all_wrong"], counts["all_right"]) == (groups, wrong, right)
    assert counts["passed"] == passed
    assert 0 < wrong < groups
    assert sum(record["groups"] for record in steps_of(folder)) == groups


def test_entropy_is_the_mean_over_the_tokens_of_both_ranks(ranks):
    folder, (first, second) = ranks
    steps = steps_of(folder)
    assert len(steps) == first["stopped"]
    unequal = False
    for record in steps:
        mine, other = (rank["sums"][str(record["step"])] for rank in (first, second))
        unequal |= mine[1] != other[1]
        pooled = (mine[0] + other[0]) / (mine[1] + other[1])
        assert record["entropy_nats"] == pytest.approx(pooled, rel=1e-5)
    assert unequal
