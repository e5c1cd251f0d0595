"""``entropyfloor sft``: trl's flags and YAML, ours beside them, errors before any compute."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig
from verb_words import error_of, verb_words

from entropyfloor.cli import sft, training_command
from entropyfloor.cli.main import main
from entropyfloor.cli.training_inputs import load_rows, model_init_kwargs

ROWS = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(8)]


@pytest.fixture
def model(save_checkpoint):
    return str(save_checkpoint("model"))


@pytest.fixture
def rows(write_jsonl):
    return str(write_jsonl(ROWS, "rows.jsonl"))


@pytest.fixture
def flags(model, rows, tmp_path):
    """The least a run needs, kept short and quiet."""

    def build(**changes):
        words = {
            "model_name_or_path": model,
            "dataset_name": rows,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
        }
        return verb_words(**words | changes)

    return build


def logged(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_train(flags, tmp_path, capsys):
    argv = flags(loss="sed", lam=0.5, tau="auto", quantile=0.4, save_strategy="steps", save_steps=2)
    assert main(["sft", *argv]) == 0
    out = tmp_path / "out"
    assert f"Model saved to {out}" in (printed := capsys.readouterr().out)
    assert f"entropyfloor screen {out} --prompts" in printed
    assert (out / "model.safetensors").is_file()
    record = json.loads((out / "entropyfloor.json").read_text())
    assert (record["loss"], record["options"]["lam"]) == ("sed", 0.5)
    assert logged(out / "checkpoint-2")[0]["selected_fraction"] == pytest.approx(0.4, abs=0.2)


def test_what_it_trained_can_be_loaded(flags, tmp_path):
    from entropyfloor.models.checkpoints import load_checkpoint

    main(["sft", *flags()])
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.tokenizer.chat_template


def test_yaml_and_flags_over_it(flags, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("loss: gem\nbeta: 0.5\nlearning_rate: 1e-4\nmax_steps: 7\n")
    for form in (["--config", str(config)], [f"--config={config}"]):
        parsed = sft.VERB.parse([*form, *flags()])
        assert parsed.training.loss == "gem"
        assert parsed.training.beta == 0.5
        assert parsed.training.learning_rate == 1e-4
        assert parsed.training.max_steps == 2
        assert not parsed.training.trust_remote_code


@pytest.mark.parametrize("tau", ["auto", "0.5", "1"])
def test_tau(flags, tau, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"tau: {tau}\n")
    expected = tau if tau == "auto" else float(tau)
    assert sft.VERB.parse(flags(tau=tau)).training.build_loss().tau == expected
    assert sft.VERB.parse(["--config", str(config), *flags()]).training.build_loss().tau == expected


def test_every_flag_of_trl_sft(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sft", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: entropyfloor sft" in text
    for group in (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig):
        for field in fields(group):
            if field.init and field.metadata.get("help"):
                assert f"--{field.name}" in text
    for name in ("loss", "lam", "top_k", "tau", "quantile", "beta", "smoothing"):
        assert f"--{name} " in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losss": "sed"}, "unknown argument --losss. Did you mean --loss?"),
        ({"colour": "blue"}, "unknown argument --colour."),
        ({"loss": "sedd"}, "unknown loss 'sedd'"),
        ({"lam": -1}, "lam is -1.0"),
        ({"tau": 2}, "tau is 2.0"),
        ({"beta": 1.0}, "loss 'sed' does not take 'beta'"),
        ({"loss_type": "dft"}, "SEDConfig(loss='dft')"),
        ({"top_k": 300}, "top_k is 300, more than the vocabulary"),
        ({"dataset_name": "rows.jsonl"}, "there is no file rows.jsonl"),
        ({"dataset_train_split": "all"}, "no split 'all', only train; name one with --dataset_t"),
        ({"eval_strategy": "steps"}, "no split 'test', only train; name one with --dataset_test"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml"),
        ({"model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
        ({"model_name_or_path": "nobody/nothing"}, "nobody/nothing cannot be loaded"),
        ({"dataset_name": "nobody/nothing"}, "nobody/nothing is neither data here nor"),
    ],
)
def test_errors(flags, capsys, changes, message):
    assert message in error_of("sft", flags(**changes), capsys)


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name"])
def test_what_is_required(flags, capsys, name):
    argv = flags()
    at = argv.index(f"--{name}")
    assert f"--{name}" in error_of("sft", argv[:at] + argv[at + 2 :], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losss: sed\n", "unknown argument --losss. Did you mean --loss?"),
        ("- loss\n", "must contain a YAML mapping"),
        ("loss: [sed\n", "is not YAML"),
    ],
)
def test_errors_in_the_yaml(flags, capsys, tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert message in error_of("sft", ["--config", str(config), *flags()], capsys)


@pytest.mark.parametrize("argv", [["--config"], ["--config", "a", "--config", "b"]])
def test_config_without_a_file(capsys, argv):
    assert "--config takes one YAML file" in error_of("sft", argv, capsys)


def test_a_pickle_is_refused(flags, capsys, save_checkpoint):
    unsafe = str(save_checkpoint("unsafe", safe=False))
    error = error_of("sft", flags(model_name_or_path=unsafe), capsys)
    assert "a pickle only (pytorch_model.bin)" in error
    assert "save_pretrained" in error


def test_a_pickle_that_is_asked_for(flags, save_checkpoint):
    unsafe = str(save_checkpoint("unsafe", safe=False))
    argv = flags(
        model_name_or_path=unsafe, max_steps=1, model_init_kwargs='{"use_safetensors": false}'
    )
    assert main(["sft", *argv]) == 0


def test_an_adapter_is_refused(flags, capsys, model, tmp_path):
    from peft import LoraConfig, get_peft_model

    from tiny_models import tiny_model

    adapter = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = model
    adapter.save_pretrained(tmp_path / "adapter")
    error = error_of("sft", flags(model_name_or_path=str(tmp_path / "adapter")), capsys)
    assert "is a PEFT adapter. Merge it first" in error


class TestData:
    @pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
    def test_files(self, flags, tmp_path, suffix):
        path, rows = tmp_path / f"data.{suffix}", Dataset.from_list(ROWS)
        write = {"jsonl": rows.to_json, "json": rows.to_json}
        write |= {"csv": rows.to_csv, "parquet": rows.to_parquet}
        write[suffix](str(path))
        assert self.prompts(flags(dataset_name=path)) == [row["prompt"] for row in ROWS]

    def prompts(self, argv, split="train"):
        parsed = sft.VERB.parse(argv)
        return [row["prompt"] for row in load_rows(parsed.script, parsed.mixture)[split]]

    @pytest.mark.parametrize("streaming", [True, False])
    def test_streaming(self, flags, streaming):
        argv = flags(dataset_streaming=streaming)
        assert self.prompts(argv) == [row["prompt"] for row in ROWS]

    @pytest.mark.parametrize("streaming", [True, False])
    def test_save_to_disk(self, flags, tmp_path, streaming):
        rows = Dataset.from_list(ROWS)
        rows.save_to_disk(tmp_path / "one")
        DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "two")
        argv = flags(dataset_name=tmp_path / "one", dataset_streaming=streaming)
        assert len(self.prompts(argv)) == 8
        argv = flags(dataset_name=tmp_path / "two", dataset_streaming=streaming)
        assert self.prompts(argv, "test") == [ROWS[2]["prompt"]]

    def test_folder_of_files(self, flags, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        Dataset.from_list(ROWS).to_json(str(folder / "train.jsonl"))
        Dataset.from_list(ROWS[:2]).to_json(str(folder / "test.jsonl"))
        argv = flags(dataset_name=folder, eval_strategy="steps", eval_steps=1)
        assert main(["sft", *argv]) == 0

    def test_mixture(self, flags, tmp_path, rows):
        config = tmp_path / "run.yaml"
        config.write_text(
            f"datasets:\n  - path: json\n    data_files: {rows}\n    split: train\n"
            "test_split_size: 0.25\n"
        )
        argv = flags()
        at = argv.index("--dataset_name")
        argv = ["--config", str(config), *argv[:at], *argv[at + 2 :]]
        assert len(self.prompts(argv, "test")) == 2


def test_resume(flags, tmp_path):
    """Four steps at once, and two and two: the same logs, from `true` or from the directory."""
    common = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["sft", *flags(**common, max_steps=4, output_dir=whole)]) == 0
    assert main(["sft", *flags(**common, output_dir=parts)]) == 0
    for resume in ("true", parts / "checkpoint-2"):
        argv = flags(**common, max_steps=4, output_dir=parts, resume_from_checkpoint=resume)
        assert main(["sft", *argv]) == 0
        ours, theirs = logged(parts / "checkpoint-4"), logged(whole / "checkpoint-4")
        assert [step["loss"] for step in ours] == [step["loss"] for step in theirs]
        (parts / "checkpoint-4").rename(tmp_path / f"done-{Path(resume).name}")


def test_resume_without_a_checkpoint(flags, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "No valid checkpoint" in error_of("sft", flags(resume_from_checkpoint="true"), capsys)


def test_lora(flags, tmp_path):
    argv = flags(use_peft=True, lora_r=2, lora_target_modules="all-linear")
    assert main(["sft", *argv]) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert (tmp_path / "out" / "entropyfloor.json").is_file()


class TestLauncher:
    """What the launcher then starts is in test_launch.py."""

    def test_its_flags_are_split_off(self, flags, monkeypatch, tmp_path):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        config = tmp_path / "run.yaml"
        config.write_text("loss: ce\nmixed_precision: 'no'\n")
        started = []
        monkeypatch.setattr(
            training_command, "launch", lambda *words, **_: started.append(words) or 0
        )
        argv = ["--config", str(config), *flags()]
        assert main(["sft", *argv[:4], "--num_processes", "2", *argv[4:]]) == 0
        (words,) = started
        assert words == (["--mixed_precision", "no", "--num_processes", "2"], argv)

    def test_a_launched_process_trains(self, flags, monkeypatch, tmp_path):
        parsed, trained = sft.VERB.parse([*flags(), "--num_processes", "2"]), []
        monkeypatch.setenv("LOCAL_RANK", "0")
        verb = training_command.TrainingVerb
        monkeypatch.setattr(verb, "parse", lambda self, argv: parsed)
        monkeypatch.setattr(verb, "train", lambda self, arguments: trained.append(arguments) or 0)
        assert main(["sft"]) == 0
        assert trained == [parsed]


def test_bf16_is_trls_default(flags):
    argv = flags()
    at = argv.index("--bf16")
    parsed = sft.VERB.parse(argv[:at] + argv[at + 2 :])
    assert parsed.training.bf16 is True
    assert model_init_kwargs(parsed.training, parsed.model)["dtype"] == "float32"
