"""Rollouts of one checkpoint on a prompt set, with the entropy of every generated token.

Rows are sorted by prompt length so that a batch wastes little padding, padded on the left, and
drawn by ``decoding`` or, where a model keeps more than keys and values, by transformers'
``generate``. A rollout ends with its first end-of-sequence token, whose step counts; what the batch
computes for the row after that never does. A rollout without one is *truncated*.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.ranks import wide_dtype
from entropyfloor.rollouts.decoding import (
    SamplingProcessor,
    TokenSampler,
    decode,
    padded,
    reads_keys_and_values,
    rollout_uniforms,
)
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.processes import Processes


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt."""

    prompt_index: int  # row of the prompt set
    sample_index: int  # which of the prompt's rollouts
    token_ids: tuple[int, ...]  # generated tokens, the end-of-sequence token included
    # float32 ``[len(token_ids)]``, next-token entropy at temperature 1 where each was drawn
    entropies_nats: np.ndarray
    text: str  # decoded without special tokens
    truncated: bool  # it reached ``max_new_tokens`` without an end-of-sequence token
    greedy: bool = False  # the most probable token was chosen at every step


def check_lengths(
    encoded: Sequence[Sequence[int]], *, context_length: int | None, max_new_tokens: int, where: str
) -> None:
    """Raise ValueError if a prompt and its completion would not fit into the context."""
    if context_length is None:
        return
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    room = context_length - len(encoded[longest])
    if room < max_new_tokens:
        way_out = f"lower max_new_tokens to {room} or less, or " if room > 0 else ""
        raise ValueError(
            f"prompt {longest} has {len(encoded[longest])} tokens; with max_new_tokens = "
            f"{max_new_tokens} it exceeds the context of {where}, {context_length} tokens: "
            f"{way_out}shorten or drop the prompt"
        )


def generate_rollouts(
    checkpoint: LoadedCheckpoint,
    encoded: Sequence[Sequence[int]],
    requests: Sequence[tuple[int, int]],
    settings: Sampling,
    processes: Processes = Processes(),
) -> Iterator[list[Rollout]]:
    """Generate the requested rollouts, a batch at a time, longest prompts first.

    ``encoded`` holds token ids per prompt; ``requests`` are (prompt index, sample index) of every
    rollout wanted, in any order. Each of the ``processes`` yields its share of the batches, which
    together hold each request once.

    Raises:
        ValueError: logits that are NaN or infinite.

    """
    eos = list(checkpoint.eos_token_ids)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=checkpoint.pad_token_id,
    )
    defaults = GenerationConfig(eos_token_id=eos or None, pad_token_id=checkpoint.pad_token_id)
    batches = request_batches(requests, encoded, settings.batch_size, pads=checkpoint.pads)
    for batch in processes.share(batches):
        with checkpoint.generating(defaults), torch.inference_mode():
            rollouts = _generate_batch(checkpoint, encoded, batch, settings, config)
        yield rollouts


def request_batches(
    requests: Sequence[tuple[int, int]],
    encoded: Sequence[Sequence[int]],
    batch_size: int,
    *,
    pads: bool = True,
) -> Iterator[list[tuple[int, int]]]:
    """Cut requests into batches by prompt length; of one length each without padding.

    Taking whole batches away from the requests leaves the others as they are.
    """
    # Longest first: a batch that does not fit into memory fails at once and not after an hour.
    ordered = sorted(requests, key=lambda request: (-len(encoded[request[0]]), request))
    batch: list[tuple[int, int]] = []
    for request in ordered:
        longer = batch and len(encoded[batch[0][0]]) != len(encoded[request[0]])
        if len(batch) == batch_size or (longer and not pads):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _generate_batch(
    checkpoint: LoadedCheckpoint,
    encoded: Sequence[Sequence[int]],
    batch: Sequence[tuple[int, int]],
    settings: Sampling,
    config: GenerationConfig,
) -> list[Rollout]:
    uniforms = rollout_uniforms(settings.seed, batch, settings.max_new_tokens)
    sampler = TokenSampler(settings)
    prompts = [encoded[prompt] for prompt, _ in batch]
    if reads_keys_and_values(checkpoint):
        drawn, entropies = decode(checkpoint, prompts, uniforms, sampler)
    else:
        device = checkpoint.inner_model.device
        rows = padded(prompts, checkpoint.pad_token_id, left=True)
        input_ids, attention_mask = (part.to(device) for part in rows)
        width = input_ids.shape[1]
        processor = SamplingProcessor(sampler, width, uniforms.to(device, wide_dtype(device)))
        drawn = checkpoint.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )[:, width:]
        entropies = processor.entropies()
    tokens, nats = drawn.tolist(), entropies.cpu().numpy()
    rollouts = []
    for row, request in enumerate(batch):
        ids, truncated = until_end(tokens[row], checkpoint.eos_token_ids)
        values = nats[row, : len(ids)].copy()
        finite = np.isfinite(values)
        if not finite.all():
            raise ValueError(
                f"{checkpoint.path} gave logits that are NaN or infinite at generated token "
                f"{finite.argmin()}; the checkpoint is damaged, or overflows in this dtype: try "
                "dtype float32 or bfloat16"
            )
        rollouts.append(finished_rollout(checkpoint, request, ids, truncated, values))
    return rollouts


def finished_rollout(
    checkpoint: LoadedCheckpoint,
    request: tuple[int, int],
    ids: tuple[int, ...],
    truncated: bool,
    entropies_nats: np.ndarray,
) -> Rollout:
    """The record of what was drawn, with its text."""
    text = checkpoint.tokenizer.decode(list(ids), skip_special_tokens=True)
    return Rollout(*request, ids, entropies_nats, text, truncated)


def until_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Tokens up to the first that ends a sequence, that one included; True if there is none."""
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1]), False
    return tuple(ids), True
