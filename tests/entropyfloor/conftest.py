"""Fixtures for what reads checkpoints and prompts from disk."""

import copy
import json
from pathlib import Path

import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def save_checkpoint(tmp_path):
    """``save_checkpoint(name, family, peak=...)`` -> directory; a high peak gives low entropy."""

    def save(
        name: str = "model",
        family: str = "llama",
        *,
        seed: int = 0,
        peak: float = 1.0,
        tokenizer: bool = True,
        chat: bool = True,
        safe: bool = True,
    ) -> Path:
        directory = tmp_path / name
        model = tiny_model(family, seed)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(peak)
        model.save_pretrained(directory)
        if not safe:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            torch.save(weights, directory / "pytorch_model.bin")
            (directory / "model.safetensors").unlink()
        if tokenizer:
            own = copy.deepcopy(tiny_tokenizer())
            if not chat:
                own.chat_template = None
            own.save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def write_jsonl(tmp_path):
    """``write_jsonl(rows, name)`` -> path; a row that is a string is written as it is."""

    def write(rows, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
