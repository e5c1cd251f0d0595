"""``--dry-run``: everything that can be checked without weights, and what would be done.

Printed are the number of prompts, the longest in tokens, and the first prompt as the model reads
it, special tokens included: most of what goes wrong with chat templates is seen there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropyfloor.cli.training_inputs import Arguments
    from entropyfloor.rollouts.options import Loading, PromptOptions, Sampling
    from entropyfloor.rollouts.prompts import PromptSet

_STREAMED = 1000  # rows of a streamed set that are looked at


def say_what_is_sampled(
    options: PromptOptions,
    sampling: Sampling,
    loading: Loading,
    checkpoints: Sequence[str],
    held_out: PromptSet | None = None,
) -> int:
    """Of a verb that draws rollouts of checkpoints.

    Raises:
        ValueError: what the verb itself would raise before it loads a model.
        FileNotFoundError: no such checkpoint.

    """
    from entropyfloor.rollouts.engines import ready_to_draw
    from entropyfloor.rollouts.processes import Processes
    from entropyfloor.rollouts.rewards import reward_by_name

    prompts = options.load()
    tasks = ready_to_draw(
        checkpoints,
        prompts,
        None if options.reward is None else reward_by_name(options.reward),
        held_out=held_out,
        sampling=sampling,
        loading=loading,
        processes=Processes(),
    ).tasks
    print(
        f"Would draw {sampling.num_samples} rollouts of up to {sampling.max_new_tokens} tokens per "
        f"prompt from {', '.join(task.source.path for task in tasks)}, scored by "
        f"{options.reward or 'no reward'}."
    )
    _say_prompts(prompts.source, list(map(len, tasks[0].encoded)), tasks[0].example)
    return 0


def say_what_is_trained_on(arguments: Arguments, rows: Any) -> int:
    """Of a verb that trains; ``rows`` are the set that it would train on.

    Raises:
        ValueError: rows that the chat template refuses, or no tokenizer.

    """
    from entropyfloor.cli.training_inputs import training_tokenizer
    from entropyfloor.rollouts.prompts import PromptSet
    from entropyfloor.rollouts.rendering import encode_prompts, rendered_text
    from entropyfloor.sft.training_rows import row_ids

    tokenizer = training_tokenizer(arguments)
    streamed = not hasattr(rows, "__len__")
    seen = list(islice(rows, _STREAMED)) if streamed else rows
    if not len(seen):
        raise ValueError("there are no rows to train on")
    training, where = arguments.training, str(arguments.model.model_name_or_path)
    if "prompt" in seen[0]:
        encoded = encode_prompts(PromptSet(tuple(seen), "the rows"), tokenizer, where=where)
    else:  # whole conversations and texts
        encoded = [row_ids(row, tokenizer, training.dataset_text_field) for row in seen]
    steps = f"{training.max_steps} steps" if training.max_steps > 0 else "by epochs"
    print(
        f"Would train {arguments.model.model_name_or_path} ({steps}; "
        f"{training.num_train_epochs:g} epochs where steps do not say) and write it to "
        f"{training.output_dir}."
    )
    name = arguments.script.dataset_name or "the rows"
    source = f"the first rows of {name}" if streamed else str(name)
    _say_prompts(source, list(map(len, encoded)), rendered_text(encoded[0], tokenizer))
    return 0


def _say_prompts(source: str, lengths: Sequence[int], example: str) -> None:
    print(f"{len(lengths)} prompts of {source}; the longest has {max(lengths)} tokens.")
    print(f"The first one as the model reads it:\n{example}")
