"""What a training verb was asked for: model and rows, checked before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropyfloor.cli.main import describe
from entropyfloor.rollouts.reading import as_written, is_json

if TYPE_CHECKING:
    from entropyfloor.rollouts.options import ChatOptions


@dataclass
class Arguments:
    """What a training verb was asked for."""

    script: Any  # trl's script arguments: which rows, and what the verb adds
    training: Any  # the trainer's configuration
    model: Any  # trl's ModelConfig
    mixture: Any  # trl's DatasetMixtureConfig: datasets: of a YAML file
    launch_in_file: list[str]  # words of the launcher in the YAML file
    launch_in_command: list[str]  # words of the launcher on the command line

    @property
    def launch(self) -> list[str]:
        """The launcher's words, if this process is to start others; none in those it started."""
        if "LOCAL_RANK" in os.environ:  # which torchrun and accelerate set
            return []
        return self.launch_in_file + self.launch_in_command

    def script_words(self, argv: Sequence[str]) -> list[str]:
        """``argv`` without the launcher's words, which appear in it in this order."""
        waiting, kept = list(self.launch_in_command), []
        for word in argv:
            if waiting and word == waiting[0]:
                waiting.pop(0)
            else:
                kept.append(word)
        return kept


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A model that cannot be found or read is an error of usage.

    Raises:
        ValueError: instead of transformers' own OSError.

    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the machine's own: a full disk, say
            raise
        raise ValueError(f"{name} cannot be loaded: {error}") from error


def model_init_kwargs(training: Any, model: Any) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``; what --model_init_kwargs says wins.

    Raises:
        ValueError: no model, an adapter, or weights that are not safetensors.

    """
    name = model.model_name_or_path
    if not name:
        raise ValueError("--model_name_or_path is missing: a model directory or a hub id")
    load_options = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        # A pickle runs code when it is loaded.
        "use_safetensors": True,
        **(training.model_init_kwargs or {}),
    }
    if Path(name).is_dir() and load_options["use_safetensors"]:
        from entropyfloor.models.checkpoint_sources import check_checkpoint

        if check_checkpoint(name).base is not None:
            raise ValueError(
                f"{name} is a PEFT adapter. Merge it first (peft: merge_and_unload, then "
                "save_pretrained) and train the merged model, or resume its run with "
                "--resume_from_checkpoint"
            )
    return load_options


def load_rows(script: Any, mixture: Any) -> Any:
    """A ``DatasetDict`` from a mixture, a file, a ``save_to_disk`` folder, a folder or a hub id.

    Raises:
        ValueError: nothing named, or data that cannot be read; a bad line of JSON is named.

    """
    from trl import get_dataset

    name = script.dataset_name
    if not (mixture.datasets or name):
        raise ValueError(
            "no training data: give --dataset_name (a JSON Lines file, a folder or a hub id), or "
            "`datasets:` in the --config file"
        )
    if not mixture.datasets and _kind(name) in _FORMATS and not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}")
    try:
        if mixture.datasets:
            return get_dataset(mixture)
        with as_written(name, lambda _: None):
            return _load(name, script)
    except Exception as error:
        words = describe(error)
        if words is None:
            raise
        here = "cannot be loaded"
        if mixture.datasets:
            parts = [f"{part.path} {part.data_files or ''}".strip() for part in mixture.datasets]
            raise ValueError(f"`datasets:` ({', '.join(parts)}) {here}: {words}") from error
        if not Path(name).exists():
            here = "is neither data here nor a hub data set that can be loaded"
        raise ValueError(f"--dataset_name {name} {here}: {words}") from error


_FORMATS = {"json", "csv", "parquet"}


def _kind(name: str) -> str:
    return "json" if is_json(name) else Path(name).suffix[1:]


def _load(name: str, script: Any) -> Any:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    path, streaming = Path(name), script.dataset_streaming
    if (kind := _kind(name)) in _FORMATS:
        return load_dataset(kind, data_files=name, streaming=streaming)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        stored = load_from_disk(name)
        splits = DatasetDict({"train": stored}) if isinstance(stored, Dataset) else stored
        if not streaming:
            return splits
        return {split: rows.to_iterable_dataset() for split, rows in splits.items()}
    return load_dataset(name, name=script.dataset_config, streaming=streaming)


def rows_for_sft(arguments: Arguments, options: dict[str, Any]) -> tuple[Any, Any]:
    """Rows to train and to evaluate on (None without), every one checked before a model is loaded.

    Args:
        arguments: of the command.
        options: of ``row_with_chat_options``, how they are rendered.

    Raises:
        ValueError: by file and row.

    """
    from entropyfloor.sft.training_rows import checked_file, row_ids

    script, training = arguments.script, arguments.training
    dataset = load_rows(script, arguments.mixture)
    wanted = {"train": script.dataset_train_split}
    if training.eval_strategy != "no":
        wanted["test"] = script.dataset_test_split
    chosen = {role: split_of(dataset, split, role) for role, split in wanted.items()}
    name = str(script.dataset_name or "the mixture")
    tokenizer = _tokenizer_of(arguments)
    for role, split in wanted.items():
        where = name if split == "train" else f"{name}, split {split!r}"
        rows = checked_file(
            chosen[role],
            script.dataset_name,
            where,
            text_field=training.dataset_text_field,
            tokenizer=tokenizer,
            options=options,
        )
        chosen[role] = rows = mapped_rows(rows, options)
        if tokenizer is not None and hasattr(rows, "__len__"):
            model = str(arguments.model.model_name_or_path)
            encoded = (row_ids(row, tokenizer, training.dataset_text_field) for row in rows)
            check_embedded(encoded, model, where, largest=max(tokenizer.get_vocab().values()))
    return chosen["train"], chosen.get("test")


def check_embedded(
    encoded: Iterable[Sequence[int]], model: str, what: str, *, largest: int | None = None
) -> None:
    """Raise ValueError, by row, for a token that a model on this machine has no embedding for.

    Args:
        encoded: token ids of the rows.
        model: directory; of a hub id nothing is known here.
        what: names the rows.
        largest: of the tokenizer's ids; nothing is read where all have an embedding.

    """
    if not Path(model).is_dir():
        return
    from entropyfloor.models.checkpoint_sources import CheckpointSource
    from entropyfloor.models.checkpoints import check_token_ids, vocabulary_size

    source = CheckpointSource(model, model, Path(model))  # `model_init_kwargs` has checked it
    if largest is None or largest >= (vocabulary_size(source) or math.inf):
        check_token_ids(encoded, source, what)


def training_tokenizer(arguments: Arguments) -> Any:
    """The tokenizer that the trainer will take."""
    from transformers import AutoTokenizer

    model = arguments.model
    with loading(model.model_name_or_path):
        return AutoTokenizer.from_pretrained(
            model.model_name_or_path,
            revision=model.model_revision,
            trust_remote_code=arguments.training.trust_remote_code,
        )


def _tokenizer_of(arguments: Arguments) -> Any:
    """The model's tokenizer; None where training replaces its chat template or it has none here."""
    if arguments.training.chat_template_path is not None:
        return None
    try:
        return training_tokenizer(arguments)
    except (OSError, ValueError):  # the trainer says what is missing
        return None


def split_of(dataset: Any, split: str, role: str) -> Any:
    """One split; ``role`` (train, test) names its flag if there is no such split."""
    if split in dataset:
        return dataset[split]
    ways_out = f"name one with --dataset_{role}_split"
    if role == "test":
        ways_out += ", split off rows with `datasets:` and `test_split_size:` in the --config file"
        ways_out += ", or leave out --eval_strategy"
    raise ValueError(f"the data has no split {split!r}, only {', '.join(dataset)}; {ways_out}")


def chat_options(script: ChatOptions, chat_template_kwargs: Any) -> dict[str, Any]:
    """Keywords of ``row_with_chat_options``."""
    return {
        "chat": script.chat,
        "system": script.system,
        "chat_template_kwargs": chat_template_kwargs,
    }


def mapped_rows(rows: Any, options: dict[str, Any]) -> Any:
    """A dataset of ``datasets`` (or None) whose rows are as ``options`` ask for."""
    if rows is None or not any(options.values()):
        return rows
    from entropyfloor.rollouts.prompts import row_with_chat_options

    return rows.map(row_with_chat_options, fn_kwargs=options)
