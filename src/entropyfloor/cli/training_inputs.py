"""The model and the rows that a training verb names, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def model_init_kwargs(training: Any, model: Any) -> dict[str, Any]:
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


def load_rows(script: Any, mixture: Any) -> Any:
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


def split_of(dataset: Any, split: str, role: str) -> Any:
    """One split; ``role`` (train, test) names its flag if there is no such split."""
    if split in dataset:
        return dataset[split]
    ways_out = f"name one with --dataset_{role}_split"
    if role == "test":
        ways_out += ", split off rows with `datasets:` and `test_split_size:` in the --config file"
        ways_out += ", or leave out --eval_strategy"
    raise ValueError(f"the data has no split {split!r}, only {', '.join(dataset)}; {ways_out}")
