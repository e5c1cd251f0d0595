"""Rescue: the line between checkpoint and base, the smallest step that clears the floor."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from entropyfloor.cli.main import main
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import load_checkpoint
from entropyfloor.models.interpolation import write_interpolated
from entropyfloor.rollouts.prompts import PromptSet
from flat_calls import rescue
from tiny_models import save_tiny

PROMPTS = PromptSet(tuple({"prompt": f"{i} + {i} ="} for i in range(6)))
SCREENING = {"num_samples": 4, "max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    """The base with a head so large that its distribution has no entropy."""
    return save_tiny(tmp_path_factory.mktemp("collapsed") / "collapsed", peak=400.0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model = load_checkpoint(base).model
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
            elif "modules_to_save" in name:
                value.mul_(400.0)
    model.save_pretrained(folder)
    return folder


def test_smallest_share_that_clears_the_floor(tmp_path, base, collapsed):
    lines = []
    found = rescue(
        collapsed,
        base=base,
        floor=1.0,
        prompts=PROMPTS,
        output_dir=tmp_path,
        tolerance=1 / 16,
        say=lines.append,
        **SCREENING,
    )
    by_share = {point.share: point for point in found.points}
    assert by_share[0.0].entropy_nats < 0.5 < 5.0 < by_share[1.0].entropy_nats
    assert by_share[found.share].clears
    assert by_share[found.share].entropy_low >= 1.0
    below = [share for share in by_share if share < found.share]
    assert not any(by_share[share].clears for share in below)
    assert found.share - max(below) <= 1 / 16
    assert len(lines) == len(found.points)
    # In full: two shares that are close to each other are not one folder.
    folders = {folder.name for folder in (tmp_path / "screening").iterdir()}
    assert folders == {f"share-{share}" for share in by_share}
    record = json.loads((tmp_path / "rescue.json").read_text())
    assert record["share"] == found.share
    state = load_checkpoint(found.path).model.state_dict()
    ends = [load_checkpoint(path).model.state_dict() for path in (collapsed, base)]
    for name, value in state.items():
        wanted = torch.lerp(ends[0][name], ends[1][name], found.share)
        torch.testing.assert_close(value, wanted)


def test_a_rerun_screens_nothing_again(tmp_path, base, collapsed, monkeypatch):
    arguments = dict(base=base, floor=1.0, prompts=PROMPTS, output_dir=tmp_path, tolerance=0.25)

    def reward():  # another object in each process, as in each run of a program
        def even(completions, **_):
            return [float(len(text) % 2 == 0) for text in completions]

        return even

    screening = {**SCREENING, "group_size": 4}
    first = rescue(collapsed, **arguments, reward=reward(), **screening)
    from entropyfloor.rollouts import rollouts

    def generated(*_, **__):
        raise AssertionError("rollouts were generated again")

    monkeypatch.setattr(rollouts, "_generate_batch", generated)
    again = rescue(collapsed, **arguments, reward=reward(), batch_size=3, **screening)
    assert again == first
    with pytest.raises(
        ValueError, match=r"rescue with other settings \(floor: 1.0 then, 2.0 now\)"
    ):
        rescue(collapsed, **{**arguments, "floor": 2.0}, reward=reward(), **screening)
    with pytest.raises(ValueError, match=r"group_size: 4 then, 2 now"):
        rescue(collapsed, **arguments, reward=reward(), **{**screening, "group_size": 2})


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_line_of_an_adapter_is_that_of_the_merged_weights(tmp_path, base, adapter, share):
    sources = check_checkpoint(adapter), check_checkpoint(base)
    write_interpolated(*sources, share, tmp_path / "out")
    found = load_checkpoint(tmp_path / "out").model
    assert isinstance(found, PeftModel)
    ends = [
        load_checkpoint(adapter).model.merge_and_unload().state_dict(),
        load_checkpoint(base).model.state_dict(),
    ]
    for name, value in found.merge_and_unload().state_dict().items():
        wanted = torch.lerp(ends[0][name], ends[1][name], share)
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    a = [n for n in load_file(tmp_path / "out" / "adapter_model.safetensors") if "lora_A" in n]
    assert a


def test_nothing_to_rescue(tmp_path, base):
    found = rescue(base, base=base, floor=1.0, prompts=PROMPTS, output_dir=tmp_path, **SCREENING)
    assert found.share == 0.0
    assert len(found.points) == 1


def test_a_base_below_the_floor(tmp_path, base, collapsed):
    with pytest.raises(ValueError, match="the base itself has entropy"):
        rescue(collapsed, base=base, floor=50.0, prompts=PROMPTS, output_dir=tmp_path, **SCREENING)


def test_bad_input(tmp_path, base, adapter, collapsed):
    good = {"base": base, "floor": 1.0, "prompts": PROMPTS, "output_dir": tmp_path}
    for change, message in [
        ({"floor": 0.0}, "floor is 0.0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"base": adapter}, "is an adapter; give the full model"),
        ({"prompts": PromptSet(PROMPTS.rows[:1])}, "rows has one prompt, .* at least two"),
    ]:
        with pytest.raises(ValueError, match=message):
            rescue(collapsed, **{**good, **change}, **SCREENING)
    with pytest.raises(ValueError, match="is an adapter on"):
        rescue(adapter, **{**good, "base": collapsed}, **SCREENING)
    other = tmp_path / "other"
    save_tiny(other, "gpt2")
    with pytest.raises(ValueError, match="not the same architecture"):
        write_interpolated(check_checkpoint(other), check_checkpoint(base), 0.5, tmp_path / "x")


def test_command(tmp_path, base, collapsed, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS.rows))
    options = "--floor 1.0 --no-progress --num_samples 2 --max-new-tokens 4 --tolerance 0.5"
    paths = ["--base", base, "--prompts", prompts, "--output-dir", tmp_path / "out"]
    assert main(["rescue", str(collapsed), *map(str, paths), *options.split()]) == 0
    assert (tmp_path / "out" / "rescued" / "model.safetensors").is_file()
    assert "of the base clears the floor 1.0" in capsys.readouterr().out
