"""Two processes (gloo, CPU) train as one does: same global batch, unequal token counts per rank."""

from pathlib import Path

import pytest
from packaging.version import Version
from trl import __version__ as trl_version
from two_process_run import CASES, run_all

from two_processes import records_of

LOGGED = ("loss", "grad_norm", "ce", "penalty", "selected_fraction", "top_k_mass", "num_tokens")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """``{(processes, rank): {case: record}}``, two launches in all."""
    program = Path(__file__).with_name("two_process_run.py")
    return records_of(program, run_all, [*CASES, "sft"], tmp_path_factory.mktemp)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_metrics(results, case):
    one, two = results[1, 0][case], results[2, 0][case]
    assert len(one["steps"]) == len(two["steps"]) == 3
    for mine, other in zip(two["steps"], one["steps"], strict=True):
        for name in LOGGED:
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    # Not eval_loss: Trainer averages the ranks' batch means by rows; ours are weighted by tokens.
    for name in ("eval_ce", "eval_penalty", "eval_selected_fraction", "eval_top_k_mass"):
        expected = pytest.approx(one["evaluations"][0][name], rel=1e-5, abs=1e-5)
        assert two["evaluations"][0][name] == expected, name
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-7)


@pytest.mark.parametrize("case", ["floor", "floor-onset"])
def test_floor(results, case):
    """Weight, target and probes: one value on both ranks, and that of one process."""
    names = ("floor_weight", "floor_target", "floor_entropy", "reference_kl")
    one, first, second = (results[key][case]["steps"] for key in ((1, 0), (2, 0), (2, 1)))
    rounding = 1e-12 if case == "floor" else 1e-7  # a KL of the model to itself, at the onset
    for alone, mine, other in zip(one, first, second, strict=True):
        for name in names:
            assert mine[name] == other[name], name
            assert mine[name] == pytest.approx(alone[name], rel=1e-5, abs=rounding), name
    assert first[-1]["floor_weight"] > 0.05
    assert first[-1]["reference_kl"] > 1e-5
    assert first[1]["probe_entropy"] == second[1]["probe_entropy"]
    assert first[1]["probe_entropy"] == pytest.approx(one[1]["probe_entropy"], rel=1e-5)


def test_one_process_writes_the_checkpoint(results):
    """What the run is resumed from is written once; the other process's random state is its own."""
    first, second = (results[2, rank]["floor-onset"]["files"] for rank in (0, 1))
    checkpoint = ("entropyfloor.json", "floor_reference.safetensors", "model.safetensors")
    expected = {"README.md", "entropy_floor.png", *(f"checkpoint-3/{name}" for name in checkpoint)}
    assert expected <= set(first)
    assert second == ["checkpoint-3/rng_state_1.pth"]


def test_equals_sft_trainer_on_two_processes(results):
    ours, theirs = results[2, 0]["ce"], results[2, 0]["sft"]
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert mine["num_tokens"] == other["num_tokens"]
        assert mine["entropy"] == pytest.approx(other["entropy"], rel=1e-5)
    # trl below 1.15 evaluates with the token count of all processes, and not with each one's mean.
    rel = 1e-6 if Version(trl_version) >= Version("1.15") else 1e-4
    ours, theirs = (run["evaluations"][0]["eval_loss"] for run in (ours, theirs))
    assert ours == pytest.approx(theirs, rel=rel)


def test_tau(results):
    """The same on both ranks to the bit, and that of one process on the same rows."""
    first, second = results[2, 0]["auto"]["tau"], results[2, 1]["auto"]["tau"]
    assert first == second
    assert first == pytest.approx(results[1, 0]["auto"]["tau"], rel=1e-6)
    assert 0.1 < results[2, 0]["auto"]["steps"][0]["selected_fraction"] < 0.6


def test_when_to_probe_is_agreed_upon(results):
    """The clock of the second process runs five times as fast."""
    first, second = (results[2, rank]["floor-timed"]["probe_interval"] for rank in (0, 1))
    assert first == second > 10
