"""Everything that can be checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.measures.pass_at_k import default_ks
from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import context_length, load_tokenizer
from entropyfloor.screening.prompts import PromptSet
from entropyfloor.screening.rollouts import check_lengths, encode_prompts
from entropyfloor.screening.teacher_forced import Completion, encode_held_out


@dataclass(frozen=True)
class Task:
    """One checkpoint, checked and tokenised, waiting to be loaded.

    Attributes:
        source: where it is.
        encoded: token ids per prompt.
        held_out: held-out completions in its tokens; empty without any.

    """

    source: CheckpointSource
    encoded: list[list[int]]
    held_out: tuple[Completion, ...]


def check_samples(
    num_samples: int, group_size: int, ks: Sequence[int] | None, *, scored: bool
) -> tuple[int, ...]:
    """Check that groups and pass@k can be estimated; the ks to report, none without a reward."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}")
    if not scored:
        return ()
    if num_samples < group_size:
        raise ValueError(
            f"{num_samples} samples per prompt cannot show how often a group of {group_size} "
            f"agrees; draw at least {group_size} samples, or set group_size to what RL will use"
        )
    chosen = default_ks(num_samples) if ks is None else tuple(sorted(set(ks)))
    wrong = [k for k in chosen if not 1 <= k <= num_samples]
    if wrong:
        raise ValueError(
            f"pass@k needs 1 <= k <= num_samples ({num_samples}); got k = "
            f"{', '.join(map(str, wrong))}"
        )
    return chosen


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
    for source in find_checkpoints(checkpoints, trust_remote_code=trust_remote_code):
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        encoded = encode_prompts(prompts, tokenizer, where=source.given)
        context = context_length(source, trust_remote_code=trust_remote_code)
        check_lengths(
            encoded, context_length=context, max_new_tokens=max_new_tokens, where=source.given
        )
        completions = _held_out(held_out, tokenizer, context, source.given)
        tasks.append(Task(source, encoded, completions))
    return tasks


def _held_out(
    held_out: PromptSet | None, tokenizer: Any, context: int | None, where: str
) -> tuple[Completion, ...]:
    if held_out is None:
        return ()
    encoded = encode_prompts(held_out, tokenizer, where=where)
    completions = encode_held_out(held_out, encoded, tokenizer)
    for row, completion in enumerate(completions):
        length = len(completion.prompt_ids) + len(completion.ids)
        if context is not None and length > context:
            raise ValueError(
                f"{held_out.source}, row {row}: prompt and completion have {length} tokens, more "
                f"than the context of {where}, {context}: shorten or drop the row"
            )
    return tuple(completions)
