"""Everything that can be checked before a model is loaded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import (
    check_token_ids,
    context_length,
    load_tokenizer,
    tokenizer_directory,
)
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts, rendered_text
from entropyfloor.rollouts.rollouts import check_lengths
from entropyfloor.rollouts.teacher_forced import Completion, encode_held_out

# Files of a checkpoint that cannot belong to its tokenizer, and are large.
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".gguf", ".h5", ".msgpack"}


@dataclass(frozen=True)
class Task:
    """One checkpoint, checked and tokenised, waiting to be loaded."""

    source: CheckpointSource  # where it is
    encoded: list[list[int]]  # token ids per prompt
    held_out: tuple[Completion, ...]  # held-out completions in its tokens; empty without any
    example: str = ""  # the first prompt as the model reads it, special tokens included


def prepare(
    checkpoints: Sequence[str | Path],
    prompts: PromptSet,
    held_out: PromptSet | None,
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> list[Task]:
    """Find and tokenise; everything that a checkpoint can get wrong before its weights are read.

    Raises:
        ValueError: no tokenizer, no chat template, prompts or completions that exceed the context.
        FileNotFoundError: no such checkpoint.

    """
    tasks = []
    # Checkpoints of one run have one tokenizer: its work is done once.
    known: dict[str, tuple[list[list[int]], tuple[Completion, ...], str]] = {}
    for source in find_checkpoints(checkpoints, trust_remote_code=trust_remote_code):
        digest = _tokenizer_digest(source)
        if digest not in known:
            tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
            encoded = encode_prompts(prompts, tokenizer, where=source.path)
            completions: tuple[Completion, ...] = ()
            if held_out is not None:
                prefixes = encode_prompts(held_out, tokenizer, where=source.path)
                completions = tuple(encode_held_out(held_out, prefixes, tokenizer))
            known[digest] = encoded, completions, rendered_text(encoded[0], tokenizer)
        encoded, completions, example = known[digest]
        check_token_ids(encoded, source, prompts.source)
        rows = [(*row.prompt_ids, *row.ids) for row in completions]
        if held_out is not None:
            check_token_ids(rows, source, held_out.source)
        context = context_length(source, trust_remote_code=trust_remote_code)
        check_lengths(
            encoded,
            context_length=context,
            max_new_tokens=max_new_tokens,
            where=source.path,
        )
        for row, ids in enumerate(rows):
            if held_out is not None and context is not None and len(ids) > context:
                raise ValueError(
                    f"{held_out.source}, row {row}: prompt and completion have {len(ids)} tokens, "
                    f"more than the context of {source.path}, {context}: shorten or drop the row"
                )
        tasks.append(Task(source, encoded, completions, example))
    return tasks


def _tokenizer_digest(source: CheckpointSource) -> str:
    """Changes with anything that a tokenizer is built from (``config.json`` names its class)."""
    digest = hashlib.sha256()
    for file in sorted(tokenizer_directory(source).glob("*")):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name != "trainer_state.json":
            digest.update(f"{file.name}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
