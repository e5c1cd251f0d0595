"""Two processes (gloo, CPU) fine-tune on ragged groups as one does."""

from pathlib import Path

import pytest
from gft_two_process_run import CASES, STEPS, run_all

from two_processes import records_of

IGNORED = ("runtime", "per_second", "step_time", "probe_share")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """``{(processes, rank): {case: record}}``, two launches in all."""
    program = Path(__file__).with_name("gft_two_process_run.py")
    return records_of(program, run_all, CASES, tmp_path_factory.mktemp)


@pytest.mark.parametrize("case", CASES)
def test_same_steps_and_weights(results, case):
    one, two = results[1, 0][case], results[2, 0][case]
    assert len(one["steps"]) == len(two["steps"]) == STEPS
    for mine, other in zip(two["steps"], one["steps"], strict=True):
        assert set(mine) == set(other)
        for name, value in other.items():
            if not name.endswith(IGNORED):
                assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-7)
    assert two["weight"] == results[2, 1][case]["weight"]


@pytest.mark.parametrize("case", ["plain", "batch"])
def test_same_evaluation(results, case):
    (mine,), (other,) = (results[n, 0][case]["evaluations"] for n in (2, 1))
    for name, value in other.items():
        if not name.endswith(IGNORED):
            assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_the_rows_responses_are_scored_once_by_all_processes_together(results):
    """The work is split; an odd number of responses makes one of them scored twice."""
    for call in (0, 1):  # training's rows, evaluation's
        alone = results[1, 0]["skipped"]["calls"][call]
        shares = [results[2, rank]["skipped"]["calls"][call] for rank in (0, 1)]
        assert len(set(alone)) == len(alone) > 4
        assert len(shares[0]) == len(shares[1]) == -(-len(alone) // 2)
        assert (shares[0] + shares[1])[: len(alone)] == alone


def test_a_prompt_and_its_group_stay_on_one_process(results):
    """Every call for policy samples has whole groups of four, no prompt of the other process."""
    first, second = (results[2, rank]["plain"]["prompts"] for rank in (0, 1))
    assert len(first) == len(second) == 2 + STEPS + 1
    for mine, others in zip(first[1 : 1 + STEPS], second[1 : 1 + STEPS], strict=True):
        assert not set(mine) & set(others)
        for part in (mine, others):
            assert len(part) == 8
            assert all(part.count(prompt) == 4 for prompt in part)


def test_one_process_writes_checkpoint_and_rewards(results):
    first, second = (results[2, rank]["floor"]["files"] for rank in (0, 1))
    checkpoint = {f"checkpoint-{STEPS}/{n}" for n in ("entropyfloor.json", "model.safetensors")}
    assert checkpoint | {"response_rewards.jsonl", "entropy_floor.png"} <= set(first)
    assert second == [f"checkpoint-{STEPS}/rng_state_1.pth"]


def test_the_floor_acted(results):
    steps = results[2, 0]["floor"]["steps"]
    assert steps[-1]["floor_weight"] > 0.05
    assert steps[-1]["reference_kl"] > 0
