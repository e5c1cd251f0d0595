"""GFT on the small task: equal tokens, groups as the trainer takes them, names mean weights."""

import json

import pytest

from entropyfloor.echelon.small_gft import GFTSettings, SmallGFT, training_facts
from entropyfloor.echelon.small_grpo import GRPOTraining
from entropyfloor.echelon.small_run import SmallRun, SmallSettings

TINY = SmallSettings(
    pretraining_steps=2,
    demonstrations=16,
    test_problems=4,
    samples=10,
    sft_batch_size=8,
    grpo=GRPOTraining(steps=1, save_every=1, prompts_per_step=2),
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    run = SmallRun(tmp_path_factory.mktemp("gft"), settings=TINY, progress=False)
    return SmallGFT(run, GFTSettings(teacher_samples=4))


def test_groups(stages):
    rows = [json.loads(line) for line in stages.groups.path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [
        row["prompt"] for row in stages.run.task.demonstrations
    ]
    for row in rows:
        expert, *teachers = row["responses"]
        assert expert == {"source": "expert", "completion": row["answer"], "reward": 1.0}
        assert all(each["reward"] == 0.0 for each in teachers)  # a right one would be the expert's
    given = sum(min(3, len(row["responses"]) - 1) for row in rows) / len(rows)
    assert stages.group_size({}) == 1 + given + 4
    assert stages.group_size({"num_teacher": 1, "num_self": 2}) <= 4
    assert stages.group_size({"num_teacher": 0, "num_self": 2}) == 3


def test_a_budget_is_tokens(stages):
    options = {"num_teacher": 0, "num_self": 1}  # groups of two: four prompts a step
    small, large = stages.gft("two", [2, 4], options=options)
    facts = training_facts(small)
    assert facts["steps"] == 4
    assert facts["tokens"]["expert"] == 4 * 4 * 3
    assert training_facts(large)["steps"] == 8
    assert stages.gft("two", [2, 4], options=options) == [small, large]  # from disk
    with pytest.raises(ValueError, match="budgets"):
        stages.gft("two", [2], options=options)
    measured = stages.measure(large, "two")
    assert measured["training"] == training_facts(large)
    assert measured["kl_to_base"] > 0
    assert stages.measure(large, "two") == measured
    with pytest.raises(ValueError, match="weights"):
        stages.measure(small, "two")


def test_from_another_start(stages):
    (start,) = stages.run.sft("ce", [1])
    (from_sft,) = stages.gft("from-sft", [2], start=start, options={"num_teacher": 0})
    (from_base,) = stages.gft("from-base", [2], options={"num_teacher": 0})
    weights = [(path / "model.safetensors").read_bytes() for path in (from_sft, from_base)]
    assert weights[0] != weights[1]
    assert training_facts(start) is None


def test_another_teacher_in_the_same_folder_is_refused(stages):
    with pytest.raises(ValueError, match="teacher_samples"):
        SmallGFT(stages.run, GFTSettings(teacher_samples=5))
