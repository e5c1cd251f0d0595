import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from entropyfloor.models.checkpoint_sources import check_checkpoint, find_checkpoints
from entropyfloor.models.checkpoints import load_checkpoint


def _run_command_of(message: str) -> None:
    """Run the ``python -c "..."`` line of an error message."""
    (line,) = [line.strip() for line in message.split("\n") if line.strip().startswith("python -c")]
    exec(line.removeprefix('python -c "').removesuffix('"'), {})


def test_an_output_folder_is_its_checkpoints_in_numeric_order(save_checkpoint, tmp_path):
    for name in ("run/checkpoint-100", "run/checkpoint-20", "run/checkpoint-3", "other"):
        save_checkpoint(name)
    (tmp_path / "run" / "checkpoint-final").mkdir()
    found = find_checkpoints([tmp_path / "other", tmp_path / "run"])
    assert [source.name for source in found] == [
        "other",
        "checkpoint-3",
        "checkpoint-20",
        "checkpoint-100",
    ]
    assert found[1].directory == tmp_path / "run" / "checkpoint-3"


def test_names_are_the_shortest_that_differ(save_checkpoint, tmp_path):
    for name in ("ce/checkpoint-3", "sed/checkpoint-3"):
        save_checkpoint(name)
    found = find_checkpoints([tmp_path / "ce", tmp_path / "sed"])
    assert [source.name for source in found] == ["ce/checkpoint-3", "sed/checkpoint-3"]


def test_the_folder_that_one_is_in_has_a_name(save_checkpoint, monkeypatch):
    inner = save_checkpoint("outer/inner")
    save_checkpoint("outer")
    monkeypatch.chdir(inner.parent)
    assert check_checkpoint(".").name == "outer"
    assert [source.name for source in find_checkpoints([".", "inner"])] == [".", "inner"]


def test_nothing_given_and_given_twice(save_checkpoint):
    with pytest.raises(ValueError, match="no checkpoints were given"):
        find_checkpoints([])
    directory = save_checkpoint()
    with pytest.raises(ValueError, match="given more than once"):
        find_checkpoints([directory, str(directory)])


@pytest.mark.parametrize("path", ["/no/such/dir", "./nothing-here", "a/b/c", "~x"])
def test_a_path_that_does_not_exist(path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        check_checkpoint(path)


def test_a_hub_id_that_cannot_be_had_offline():
    with pytest.raises(
        FileNotFoundError, match="neither a directory here nor a model that the hub"
    ):
        check_checkpoint("entropyfloor-tests/there-is-no-such-model")


def test_a_directory_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"neither config.json nor adapter_config.json"):
        check_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the directory"):
        check_checkpoint(tmp_path / "notes.txt")


def test_no_weights_and_missing_shards(save_checkpoint):
    directory = save_checkpoint()
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "optimizer.pt")  # a trainer's own files are no weights
    torch.save({}, directory / "training_args.bin")
    with pytest.raises(ValueError, match=r"has no weights: there is no model.safetensors"):
        check_checkpoint(directory)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index names model-00001-of-00002.safetensors"):
        check_checkpoint(directory)


def test_a_pickle_is_refused_and_the_advice_works(save_checkpoint):
    directory = save_checkpoint("pickled", safe=False)
    with pytest.raises(ValueError, match=r"pickle only \(pytorch_model.bin\)") as error:
        load_checkpoint(directory)
    _run_command_of(str(error.value))
    converted = load_checkpoint(f"{directory}-safetensors")
    original = load_checkpoint(save_checkpoint("safe"))
    for left, right in zip(converted.model.parameters(), original.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.fixture
def adapter(save_checkpoint, tmp_path):
    base = save_checkpoint("base")
    model = get_peft_model(
        load_checkpoint(base).model,
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    )
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_brings_its_base(adapter, tmp_path):
    source = check_checkpoint(adapter)
    assert source.base.directory == tmp_path / "base"
    loaded = load_checkpoint(adapter)
    assert loaded.tokenizer.eos_token == "<|end|>"  # the base's: the adapter has none


def test_an_adapter_whose_base_is_gone(adapter, tmp_path):
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"the base model .* was not found") as error:
        check_checkpoint(adapter)
    assert "base_model_name_or_path" in str(error.value)


def test_an_adapter_that_names_no_base_or_an_adapter(adapter):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base model"):
        check_checkpoint(adapter)
    shutil.copytree(adapter, adapter.parent / "inner")
    (adapter.parent / "inner" / "adapter_config.json").write_text(json.dumps(config))
    path.write_text(
        json.dumps({**config, "base_model_name_or_path": str(adapter.parent / "inner")})
    )
    with pytest.raises(ValueError, match="is an adapter itself; merge it"):
        check_checkpoint(adapter)


def test_a_pickled_adapter_is_refused_and_the_advice_works(adapter):
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickle only \(adapter_model.bin\)") as error:
        check_checkpoint(adapter)
    _run_command_of(str(error.value))
    assert load_file(adapter / "adapter_model.safetensors").keys() == weights.keys()
    load_checkpoint(adapter)


def test_broken_json(adapter):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"is not JSON .* copy the checkpoint again"):
        check_checkpoint(adapter)
