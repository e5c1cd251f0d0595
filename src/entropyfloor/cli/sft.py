"""``entropyfloor sft``: train with SEDTrainer; every flag and YAML of ``trl sft``, plus the losses.

    entropyfloor sft --model_name_or_path MODEL --dataset_name rows.jsonl --output_dir out

Differences from ``trl sft``: --dataset_name also takes a JSON, JSON Lines, CSV or Parquet file and
a ``save_to_disk`` folder; weights are loaded from safetensors only; --resume_from_checkpoint true
takes the last checkpoint of the output directory; an unknown flag is an error. It trains in this
process. Flags of ``accelerate launch`` (--num_processes 2, --accelerate_config fsdp2) start it
under that launcher instead, as ``trl sft`` does.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class _Arguments:
    """What was asked for, in trl's groups."""

    script: Any
    training: Any
    model: Any
    mixture: Any
    launch_in_file: list[str]
    launch_in_command: list[str]


def main(argv: Sequence[str]) -> int:
    """Parse, train, save. Returns 0; errors of usage and data are raised."""
    arguments = _parse(argv)
    launch = arguments.launch_in_file + arguments.launch_in_command
    if launch and "LOCAL_RANK" not in os.environ:  # which torchrun and accelerate set
        return _launch(launch, _without(argv, arguments.launch_in_command))
    return _train(arguments)


def _parse(argv: Sequence[str]) -> _Arguments:
    """Read command line and YAML; refuse words that nobody knows."""
    import yaml
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from entropyfloor import SEDConfig

    parser = TrlParser(
        (ScriptArguments, SEDConfig, ModelConfig, DatasetMixtureConfig),
        prog="entropyfloor sft",
        description="Supervised fine-tuning with an entropy-preserving loss.",
    )
    try:
        script, training, model, mixture, in_file, in_command = parser.parse_args_and_config(
            _config_as_two_words(argv),
            return_remaining_strings=True,
            separate_remaining_strings=True,
        )
    except yaml.YAMLError as error:
        raise ValueError(f"the --config file is not YAML: {error}") from error
    _check_launch_words(in_file, set(parser._option_string_actions))
    _check_launch_words(in_command, set(parser._option_string_actions))
    return _Arguments(script, training, model, mixture, in_file, in_command)


def _config_as_two_words(argv: Sequence[str]) -> list[str]:
    """``--config=FILE`` as two words, the only form that TrlParser knows."""
    words: list[str] = []
    for word in argv:
        words.extend(word.split("=", 1) if word.startswith("--config=") else [word])
    if words.count("--config") > 1 or words[-1:] == ["--config"]:
        raise ValueError("--config takes one YAML file, and may be given once")
    return words


def _check_launch_words(words: list[str], known: set[str]) -> None:
    """Refuse what neither the trainer nor ``accelerate launch`` knows."""
    if not words:
        return
    from accelerate.commands.launch import launch_command_parser

    launcher = {"--accelerate_config", *launch_command_parser()._option_string_actions}
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    unknown = [words[0]] if not words[0].startswith("--") else []
    unknown += [flag for flag in flags if flag not in launcher]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known | launcher, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"unknown argument {unknown[0]}.{hint} `entropyfloor sft --help` lists all of them"
        )


def _without(argv: Sequence[str], removed: list[str]) -> list[str]:
    """``argv`` without ``removed``, whose words appear in it in this order."""
    waiting, kept = list(removed), []
    for word in argv:
        if waiting and word == waiting[0]:
            waiting.pop(0)
        else:
            kept.append(word)
    return kept


def _launch(launch: list[str], own: list[str]) -> int:
    """Start this file under ``accelerate launch``."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    words = [*resolve_accelerate_config_argument(launch), "--module", __name__, *own]
    launch_command(launch_command_parser().parse_args(words))
    return 0


def _train(arguments: _Arguments) -> int:
    from trl import get_peft_config, get_quantization_config

    from entropyfloor import SEDTrainer

    training, model = arguments.training, arguments.model
    training.model_init_kwargs = _model_init_kwargs(training, model)
    dataset = _load_dataset(arguments.script, arguments.mixture)
    train_rows = _split(dataset, arguments.script.dataset_train_split, "train")
    test_rows = None
    if training.eval_strategy != "no":
        test_rows = _split(dataset, arguments.script.dataset_test_split, "test")
    try:
        trainer = SEDTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    except OSError as error:
        if error.errno is not None:  # the machine's own: a full disk, say
            raise
        raise ValueError(f"{model.model_name_or_path} cannot be loaded: {error}") from error
    resume = training.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in {"true", "false"}:
        resume = resume.lower() == "true"
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(training.output_dir)
    say = trainer.accelerator.print
    say(f"Model saved to {training.output_dir}")
    say(
        "Before paying for RL, measure what it would start from:\n"
        f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl --reward exact_match"
    )
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
        say(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}")
    trainer.end()
    return 0


def _model_init_kwargs(training: Any, model: Any) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``; what --model_init_kwargs says wins.

    Raises:
        ValueError: no model, an adapter, or weights that are not safetensors.

    """
    name = model.model_name_or_path
    if not name:
        raise ValueError("--model_name_or_path is missing: a model directory or a hub id")
    given = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        # A pickle runs code when it is loaded.
        "use_safetensors": True,
        **(training.model_init_kwargs or {}),
    }
    if Path(name).is_dir() and given["use_safetensors"]:
        from entropyfloor.models.checkpoint_sources import check_checkpoint

        if check_checkpoint(name).base is not None:
            raise ValueError(
                f"{name} is a PEFT adapter. Merge it first (peft: merge_and_unload, then "
                "save_pretrained) and train the merged model, or resume its run with "
                "--resume_from_checkpoint"
            )
    return given


def _load_dataset(script: Any, mixture: Any) -> Any:
    """A ``DatasetDict`` from a mixture, a file, a ``save_to_disk`` folder, a folder or a hub id."""
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from trl import get_dataset

    name = script.dataset_name
    if mixture.datasets:
        return get_dataset(mixture)
    if not name:
        raise ValueError(
            "no training data: give --dataset_name (a JSON Lines file, a folder or a hub id), or "
            "`datasets:` in the --config file"
        )
    path = Path(name)
    if path.suffix in _FILE_FORMATS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {name}")
        return load_dataset(
            _FILE_FORMATS[path.suffix], data_files=name, streaming=script.dataset_streaming
        )
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        stored = load_from_disk(name)
        splits = DatasetDict({"train": stored}) if isinstance(stored, Dataset) else stored
        if not script.dataset_streaming:
            return splits
        return {split: rows.to_iterable_dataset() for split, rows in splits.items()}
    try:
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except OSError as error:  # not there, or no network
        raise ValueError(
            f"--dataset_name {name} is neither data here nor a hub data set that can be loaded: "
            f"{error}"
        ) from error


def _split(dataset: Any, split: str, role: str) -> Any:
    if split in dataset:
        return dataset[split]
    ways_out = f"name one with --dataset_{role}_split"
    if role == "test":
        ways_out += ", split off rows with `datasets:` and `test_split_size:` in the --config file"
        ways_out += ", or leave out --eval_strategy"
    raise ValueError(f"the data has no split {split!r}, only {', '.join(dataset)}; {ways_out}")


if __name__ == "__main__":  # a process of `accelerate launch`, whose flags have been followed
    try:
        sys.exit(_train(_parse(sys.argv[1:])))
    except (ValueError, FileNotFoundError) as error:
        print(f"entropyfloor sft: {error}", file=sys.stderr)
        sys.exit(2)
