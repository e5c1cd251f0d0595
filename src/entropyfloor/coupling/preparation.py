"""Which checkpoints, in which order, and do they read the same tokens? Nothing is loaded here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from entropyfloor.coupling.options import RunOptions
from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import context_length, load_tokenizer
from entropyfloor.rollouts.engines import Task
from entropyfloor.rollouts.rollouts import check_lengths
from entropyfloor.rollouts.teacher_forced import Completion

ORDERS = ("sft-rl", "rl-sft")
_STEP = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class Run:
    """One run and what it started from."""

    order: str  # sft-rl or rl-sft
    sources: tuple[CheckpointSource, ...]  # the start, then the run's checkpoints by step
    steps: tuple[float, ...]  # of each; the start is 0
    step_unit: str  # step, or checkpoint where names hold no steps


def find_run(options: RunOptions, *, trust_remote_code: bool) -> Run:
    """Expand trainer folders, tell start from run, and put the run in order.

    Raises:
        ValueError: several checkpoints on both sides, an unknown order, prompt-learning adapters,
            tokenizers of different vocabularies, steps that do not fit.
        FileNotFoundError: no such checkpoint.

    """
    order = options.order
    if order is not None and order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; choose one of {', '.join(ORDERS)}")
    sides = {
        side: find_checkpoints(getattr(options, side), trust_remote_code=trust_remote_code)
        for side in ("sft", "rl")
    }
    counts = {side: len(sources) for side, sources in sides.items()}
    order = order or ("sft-rl" if counts["sft"] == 1 else "rl-sft")
    first, later = order.split("-")
    if counts[first] != 1:
        raise ValueError(
            f"a run starts from one checkpoint; with {counts['sft']} SFT and {counts['rl']} RL "
            f"checkpoints and order {order} there are {counts[first]} to start from: give one "
            f"checkpoint (not a folder of several) to --{first}"
        )
    paths = [source.path for source in (*sides[first], *sides[later])]
    sources = find_checkpoints(paths, trust_remote_code=trust_remote_code)  # names unique together
    for source in sources:
        if source.virtual_tokens:
            raise ValueError(
                f"{source.path} is a prompt-learning adapter; the coupling is not implemented for "
                "its virtual tokens: give full models, or adapters such as LoRA"
            )
    vocabularies = [
        load_tokenizer(source, trust_remote_code=trust_remote_code).get_vocab()
        for source in sources
    ]
    for source, other in zip(sources, vocabularies, strict=True):
        _check_vocabulary(sources[0], vocabularies[0], source, other)
    numbers, unit = _steps(sources[1:], options.steps)
    ranks = sorted(range(len(numbers)), key=numbers.__getitem__)
    return Run(
        order,
        (sources[0], *(sources[1:][rank] for rank in ranks)),
        (0.0, *(numbers[rank] for rank in ranks)),
        unit,
    )


def _steps(
    sources: Sequence[CheckpointSource], steps: Sequence[float] | None
) -> tuple[list[float], str]:
    """Of the run's checkpoints, and their unit; read off the folders' names if not listed."""
    names = [_STEP.search(source.path.rstrip("/")) for source in sources]
    named = [float(match[1]) for match in names if match is not None]
    if steps is not None and len(steps) != len(sources):
        raise ValueError(
            f"{len(steps)} steps were given for {len(sources)} checkpoints; give one each"
        )
    if steps is not None:
        numbers, unit = [float(step) for step in steps], "step"
    elif len(named) == len(sources):
        numbers, unit = named, "step"
    else:
        numbers, unit = [float(i) for i in range(1, len(sources) + 1)], "checkpoint"
    if len(set(numbers)) < len(numbers) or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(
            f"the checkpoints' steps are {', '.join(f'{n:g}' for n in numbers)}; a run has each "
            "step once, after 0: give checkpoints of one run, or --steps"
        )
    return numbers, unit


def same_tokens(
    tasks: Sequence[Task], *, max_new_tokens: int, trust_remote_code: bool
) -> tuple[list[list[int]], Sequence[Completion]]:
    """Token ids per prompt, and the demonstrations to be scored, in the tokens of all checkpoints.

    Raises:
        ValueError: tokenizers that differ, demonstrations' prompts too long for a context.

    """
    encoded, completions = tasks[0].encoded, tasks[0].held_out
    for task in tasks:
        if (task.encoded, task.held_out) != (encoded, completions):
            raise ValueError(
                f"the tokenizers of {tasks[0].source.path} and {task.source.path} have the same "
                "vocabulary but turn these rows into different tokens (another chat template, or "
                "other merges); losses and KLs compare models on the same tokens: save one "
                "tokenizer beside both"
            )
        check_lengths(  # the SFT model's samples for the demonstrations' prompts
            [completion.prompt_ids for completion in completions],
            context_length=context_length(task.source, trust_remote_code=trust_remote_code),
            max_new_tokens=max_new_tokens,
            where=task.source.path,
        )
    return encoded, completions


def _check_vocabulary(
    start: CheckpointSource,
    vocabulary: dict[str, int],
    source: CheckpointSource,
    other: dict[str, int],
) -> None:
    if vocabulary == other:
        return
    token = next(t for t in {**vocabulary, **other} if vocabulary.get(t) != other.get(t))
    one, two = (f"number {v[token]}" if token in v else "missing" for v in (vocabulary, other))
    raise ValueError(
        f"{start.path} and {source.path} have different tokenizers ({len(vocabulary)} and "
        f"{len(other)} tokens; {token!r} is {one} in one and {two} in the other); losses and KLs "
        "per token of different tokens cannot be compared: give checkpoints that were trained from "
        "one another"
    )
