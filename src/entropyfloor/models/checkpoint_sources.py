"""Which checkpoints does a user mean, and are they safe to load? Nothing is loaded here.

A checkpoint is a model directory, a PEFT adapter directory (its base is named in
adapter_config.json), or a hub id of either. A trainer's output folder stands for all its
``checkpoint-*``, in numeric order, and not for the final model that may lie beside them: give that
as a checkpoint of its own by copying or linking it elsewhere.

Weights must be safetensors. A pickle runs code when it is loaded, so it is refused, with the
command that converts it.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_STEP = re.compile(r"checkpoint-(\d+)")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_KINDS = "a model directory, a PEFT adapter directory, a trainer's output folder, or a hub id"


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that was found and checked, not loaded."""

    name: str  # short and unique among the checkpoints it was found with, for tables
    path: str  # what the user wrote, or the path that it was expanded to
    directory: Path  # where its files are on this machine
    # The base model of a PEFT adapter; None for a full model
    base: "CheckpointSource | None" = None
    virtual_tokens: int = 0  # positions that a prompt-learning adapter takes from the context


def find_checkpoints(
    paths_or_ids: Iterable[str | Path], *, trust_remote_code: bool = False
) -> list[CheckpointSource]:
    """Expand, check and name checkpoints, in the order given.

    Hub ids are downloaded (safetensors and text files only) or taken from the local hub cache.

    Raises:
        FileNotFoundError: no such directory or hub id.
        ValueError: no checkpoints, weights that are not safetensors, missing files, one given
            twice.

    """
    if isinstance(paths_or_ids, str | Path):
        paths_or_ids = [paths_or_ids]
    paths = [part for path in paths_or_ids for part in _expand(path)]
    if not paths:
        raise ValueError(f"no checkpoints were given; give {_KINDS}")
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"given more than once: {', '.join(twice)}")
    sources = [check_checkpoint(path, trust_remote_code=trust_remote_code) for path in paths]
    names = _short_names([source.path for source in sources])
    return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]


def _expand(path: str | Path) -> list[str]:
    """Turn a trainer's output folder into its checkpoint-*, anything else into itself."""
    folder = Path(path)
    if not folder.is_dir():
        return [str(path)]
    return list(map(str, step_folders(folder))) or [str(folder)]


def step_folders(folder: Path) -> list[Path]:
    """A trainer's ``checkpoint-*``, in the order of their steps; other names are no checkpoints."""
    steps = [
        (int(match[1]), child)
        for child in folder.glob("checkpoint-*")
        if child.is_dir() and (match := _STEP.fullmatch(child.name))
    ]
    return [child for _, child in sorted(steps)]


def check_checkpoint(
    path_or_id: str | Path, *, trust_remote_code: bool = False
) -> CheckpointSource:
    """Find and check one checkpoint, without looking for a checkpoint-* inside it.

    Raises:
        FileNotFoundError: no such directory or hub id.
        ValueError: weights that are not safetensors, or missing files.

    """
    path, local = str(path_or_id), Path(path_or_id)
    name = local.name or local.resolve().name  # of "."
    if local.is_file():
        raise ValueError(f"{path} is a file; give the directory that it lies in ({_KINDS})")
    directory = local if local.is_dir() else _from_hub(path, trust_remote_code=trust_remote_code)
    if (directory / "adapter_config.json").is_file():
        config = read_json(directory / "adapter_config.json")
        base = _base_of_adapter(path, config, trust_remote_code=trust_remote_code)
        _check_weights(path, directory, "adapter_model")
        virtual_tokens = config.get("num_virtual_tokens") or 0
        return CheckpointSource(name, path, directory, base, virtual_tokens)
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{path} holds neither config.json nor adapter_config.json nor a checkpoint-*; give "
            f"{_KINDS}"
        )
    _check_weights(path, directory, "model")
    return CheckpointSource(name, path, directory)


def _base_of_adapter(
    path: str, config: dict[str, Any], *, trust_remote_code: bool
) -> CheckpointSource:
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter {path} does not name its base model; set base_model_name_or_path in its "
            "adapter_config.json"
        )
    try:
        source = check_checkpoint(base, trust_remote_code=trust_remote_code)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the base model {base!r} of the adapter {path} was not found; put it there, or "
            "correct base_model_name_or_path in the adapter's adapter_config.json"
        ) from error
    if source.base is not None:
        raise ValueError(
            f"the base {base!r} of the adapter {path} is an adapter itself; merge it into its "
            "own base first (peft: merge_and_unload, then save_pretrained)"
        )
    return source


def _check_weights(path: str, directory: Path, stem: str) -> None:
    """Raise unless ``stem``'s weights are complete safetensors files."""
    files = weight_files(directory, stem)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{path} is incomplete: its index names {', '.join(missing)}; copy it again"
        )
    for file in files:
        _check_whole(file)
    if files:
        return
    pickles = sorted(
        file.name
        for pattern in _PICKLES
        for file in directory.glob(pattern)
        if file.name not in {"training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
    )
    if not pickles:
        raise ValueError(f"{path} has no weights: there is no {stem}.safetensors in {directory}")
    raise ValueError(
        f"{path} has its weights as a pickle only ({', '.join(pickles)}), which can run code when "
        "loaded. If you trust its origin, convert it once and give the converted directory:\n"
        f"{_conversion(path, stem)}"
    )


def weight_files(directory: Path, stem: str) -> list[Path]:
    """The safetensors files of ``stem``'s weights, those of its index if there is one."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
        return [directory / shard for shard in sorted(shards)]
    file = directory / f"{stem}.safetensors"
    return [file] if file.is_file() else []


def _check_whole(file: Path) -> None:
    """Compare the header with the size of the file; no weight is read."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); was its copy or download cut off? "
            "Copy it again"
        ) from error


def _conversion(path: str, stem: str) -> str:
    if stem == "adapter_model":
        return (
            '  python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{path}/adapter_model.bin', map_location='cpu', weights_only=True); "
            "save_file({k: v.contiguous().clone() for k, v in w.items()}, "
            f"'{path}/adapter_model.safetensors', metadata={{'format': 'pt'}})\""
        )
    target = f"{path.rstrip('/')}-safetensors"
    return (
        '  python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained('{path}', use_safetensors=False).save_pretrained('{target}'); "
        f"T.from_pretrained('{path}').save_pretrained('{target}')\""
    )


def _from_hub(path: str, *, trust_remote_code: bool) -> Path:
    if not _HUB_ID.fullmatch(path):
        raise FileNotFoundError(f"no checkpoint at {path!r}; give {_KINDS}")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    if trust_remote_code:
        patterns.append("*.py")
    try:
        return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:  # not found, gated, offline and not cached, malformed id
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{path!r} is neither a directory here nor a model that the hub gave us ({reason}); "
            f"give {_KINDS}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A file of a checkpoint; ValueError where it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; copy the checkpoint again")
    return content


def _short_names(paths: list[str]) -> list[str]:
    """Cut paths to the fewest last components that tell each from the others."""
    parts = [Path(path).parts or (path,) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return paths
