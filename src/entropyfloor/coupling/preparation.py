"""Which checkpoints, in which order, and do they read the same tokens? Nothing is loaded here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import check_token_ids, context_length, load_tokenizer
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.rollouts import check_lengths
from entropyfloor.rollouts.teacher_forced import Completion, check_held_out, encode_held_out

ORDERS = ("sft-rl", "rl-sft")
_STEP = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class Run:
    """One run and what it started from.

    Attributes:
        order: ``sft-rl`` or ``rl-sft``.
        sources: the start, then the run's checkpoints by step.
        steps: of each; the start is 0.
        step_unit: ``step``, or ``checkpoint`` where names hold no steps.

    """

    order: str
    sources: tuple[CheckpointSource, ...]
    steps: tuple[float, ...]
    step_unit: str


@dataclass(frozen=True)
class Encoded:
    """Prompts and demonstrations in the tokens of all checkpoints.

    Attributes:
        prompts: token ids per prompt.
        demonstration_prompts: token ids of each demonstration's prompt.
        demonstrations: to be scored.

    """

    prompts: list[list[int]]
    demonstration_prompts: list[list[int]]
    demonstrations: list[Completion]


def find_run(
    sft: Sequence[str | Path],
    rl: Sequence[str | Path],
    *,
    order: str | None,
    steps: Sequence[float] | None,
    trust_remote_code: bool,
) -> Run:
    """Expand trainer folders, tell start from run, and put the run in order.

    Raises:
        ValueError: several checkpoints on both sides, an unknown order, prompt-learning adapters,
            steps that do not fit.
        FileNotFoundError: no such checkpoint.

    """
    if order is not None and order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; choose one of {', '.join(ORDERS)}")
    found = {
        "sft": find_checkpoints(sft, trust_remote_code=trust_remote_code),
        "rl": find_checkpoints(rl, trust_remote_code=trust_remote_code),
    }
    counts = {kind: len(sources) for kind, sources in found.items()}
    order = order or ("sft-rl" if counts["sft"] == 1 else "rl-sft")
    first, later = order.split("-")
    if counts[first] != 1:
        raise ValueError(
            f"a run starts from one checkpoint; with {counts['sft']} SFT and {counts['rl']} RL "
            f"checkpoints and order {order} there are {counts[first]} to start from: give one "
            f"checkpoint (not a folder of several) to --{first}"
        )
    given = [source.given for source in (*found[first], *found[later])]
    sources = find_checkpoints(given, trust_remote_code=trust_remote_code)  # names unique together
    for source in sources:
        if source.virtual_tokens:
            raise ValueError(
                f"{source.given} is a prompt-learning adapter; the coupling is not implemented for "
                "its virtual tokens: give full models, or adapters such as LoRA"
            )
    numbers, unit = _steps(sources[1:], steps)
    ranks = sorted(range(len(numbers)), key=numbers.__getitem__)
    return Run(
        order,
        (sources[0], *(sources[1:][rank] for rank in ranks)),
        (0.0, *(numbers[rank] for rank in ranks)),
        unit,
    )


def _steps(
    sources: Sequence[CheckpointSource], given: Sequence[float] | None
) -> tuple[list[float], str]:
    if given is not None:
        if len(given) != len(sources):
            raise ValueError(
                f"{len(given)} steps were given for {len(sources)} checkpoints; give one each"
            )
        numbers, unit = [float(step) for step in given], "step"
    else:
        matches = [_STEP.search(source.given.rstrip("/")) for source in sources]
        named = [float(match[1]) for match in matches if match is not None]
        all_named = len(named) == len(sources)
        unit = "step" if all_named else "checkpoint"
        numbers = named if all_named else [float(i) for i in range(1, len(sources) + 1)]
    if len(set(numbers)) < len(numbers) or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(
            f"the checkpoints' steps are {', '.join(f'{n:g}' for n in numbers)}; a run has each "
            "step once, after 0: give checkpoints of one run, or --steps"
        )
    return numbers, unit


def encode(
    run: Run,
    demonstrations: PromptSet,
    prompts: PromptSet,
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> Encoded:
    """Tokenise with every checkpoint's tokenizer, and insist that they agree.

    Raises:
        ValueError: tokenizers that differ, rows without completion, rows too long for a context.

    """
    check_held_out(demonstrations)
    first: tuple[CheckpointSource, Any, Encoded] | None = None
    for source in run.sources:
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        if first is not None:
            _check_vocabulary(first[0], first[1], source, tokenizer)
        demo_prompts = encode_prompts(demonstrations, tokenizer, where=source.given)
        found = Encoded(
            encode_prompts(prompts, tokenizer, where=source.given),
            demo_prompts,
            encode_held_out(demonstrations, demo_prompts, tokenizer),
        )
        if first is None:
            first = (source, tokenizer, found)
        elif found != first[2]:
            raise ValueError(
                f"the tokenizers of {first[0].given} and {source.given} have the same vocabulary "
                "but turn these rows into different tokens (another chat template, or other "
                "merges); losses and KLs compare models on the same tokens: save one tokenizer "
                "beside both"
            )
        check_token_ids(found.prompts, source, prompts.source)
        rows = [(*row.prompt_ids, *row.ids) for row in found.demonstrations]
        check_token_ids(rows, source, demonstrations.source)
        context = context_length(source, trust_remote_code=trust_remote_code)
        for encoded in (found.prompts, found.demonstration_prompts):
            check_lengths(
                encoded, context_length=context, max_new_tokens=max_new_tokens, where=source.given
            )
        for row, completion in enumerate(found.demonstrations):
            length = len(completion.prompt_ids) + len(completion.ids)
            if context is not None and length > context:
                raise ValueError(
                    f"{demonstrations.source}, row {row}: prompt and completion have {length} "
                    f"tokens, more than the context of {source.given}, {context}: shorten or drop "
                    "the row"
                )
    assert first is not None
    return first[2]


def _check_vocabulary(
    start: CheckpointSource, tokenizer: Any, source: CheckpointSource, other: Any
) -> None:
    own, its = tokenizer.get_vocab(), other.get_vocab()
    if own == its:
        return
    differ = next(token for token in {**own, **its} if own.get(token) != its.get(token))
    raise ValueError(
        f"{start.given} and {source.given} have different tokenizers ({len(own)} and {len(its)} "
        f"tokens; {differ!r} is {_number(own.get(differ))} in one and {_number(its.get(differ))} "
        "in the other); losses and KLs per token of different tokens cannot be compared: give "
        "checkpoints that were trained from one another"
    )


def _number(identifier: int | None) -> str:
    return "missing" if identifier is None else f"number {identifier}"
