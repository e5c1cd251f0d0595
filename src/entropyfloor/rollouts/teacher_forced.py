"""What a checkpoint thinks of given completions: held-out loss, KL to its base, entropy.

    held-out loss   -log p(y)                                      nats per token
    KL to the base  sum_v p(v) (log p(v) - log p_base(v))          nats per token, exact over V
    entropy         -sum_v p(v) log p(v)                           nats per token, exact over V

on held-out completions, and for the KL on the checkpoint's own rollouts too, where it is an
unbiased look at how far the policy has moved from the base. All are at temperature 1. The entropy
is for rollouts that another engine drew.

The backbone reads right-padded rows of a fixed number of tokens at most; the head is applied to a
chunk of their hidden states at a time, so that logits are ``[chunk, V]`` and never ``[N, V]``; for
the KL there are two such blocks, and the base stays in memory beside the checkpoint. The head
module itself is called (and not its weight), so adapters on it and quantisation count. How rows are
put together depends on their lengths only, and not on the batch size of sampling.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.lm_head import final_logits
from entropyfloor.rollouts.decoding import padded
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.reading import check_unicode, text_messages
from entropyfloor.rollouts.rendering import encode_messages, template_refusals
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor_losses import token_statistics

COLUMN = "completion"
_ROW_TOKENS = 8192  # tokens of one forward pass, padding included
_CHUNK_BYTES = 64 * 2**20  # logits of one chunk: 341 tokens x 49,152 entries x 4 bytes


@dataclass(frozen=True)
class TokenSums:
    """Sums over the tokens of each prompt, nats, and how many tokens they are over."""

    sums: tuple[float, ...]
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class Completion:
    """Tokens whose probability is asked for, after the tokens they follow."""

    prompt_index: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


def rollout_completions(
    rollouts: Iterable[Rollout], encoded: Sequence[Sequence[int]]
) -> list[Completion]:
    """Rollouts after their prompts; ``encoded`` holds token ids per prompt."""
    return [
        Completion(r.prompt_index, tuple(encoded[r.prompt_index]), r.token_ids) for r in rollouts
    ]


def check_held_out(held_out: PromptSet) -> None:
    """Raise ValueError if a row has no completion, or one that is neither text nor messages."""
    for index, row in enumerate(held_out.rows):
        completion, where = row.get(COLUMN), f"{held_out.source}, row {index}"
        if completion is None or completion in ("", []):
            raise ValueError(
                f"{where} has no {COLUMN!r}: held-out rows need a prompt and the completion to "
                "score"
            )
        if isinstance(completion, list):
            text_messages(completion, f"{where}, {COLUMN}")
        elif isinstance(completion, str):
            check_unicode(completion, f"{where}, {COLUMN}")
        else:
            raise ValueError(
                f"{where} has {completion!r:.40} ({type(completion).__name__}) as {COLUMN!r}; a "
                "completion is text or a list of messages"
            )


def encode_held_out(
    held_out: PromptSet, encoded: Sequence[Sequence[int]], tokenizer: Any
) -> list[Completion]:
    """Token ids of held-out completions, the end-of-sequence token included, as in training.

    Prompt (``encoded``: its token ids) and completion are tokenised together. Where that changes
    the prompt's own tokens (a token across the border, a chat template that renders it otherwise)
    the completion is tokenised alone: what follows must be what follows the prompt of a rollout.
    """
    encoded_completions = []
    for index, (row, prefix) in enumerate(zip(held_out.rows, encoded, strict=True)):
        completion, where = row[COLUMN], f"{held_out.source}, row {index}"
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        messages = text_messages(completion, f"{where}, {COLUMN}")
        text = messages[-1].get("content") or ""  # nothing beside tool calls
        if isinstance(row["prompt"], str):
            whole = list(tokenizer(row["prompt"] + text)["input_ids"])
        else:
            with template_refusals(where, "the checkpoint"):
                whole = encode_messages([*row["prompt"], *messages], row, tokenizer)
        if whole[: len(prefix)] == list(prefix) and len(whole) > len(prefix):
            ids = whole[len(prefix) :]
        elif not text and messages[-1].get("tool_calls"):
            raise ValueError(
                f"{where}: the tool calls of {COLUMN!r} cannot be scored: the prompt is plain "
                "text, or the chat template renders it otherwise once they follow; remove the row, "
                "or the column"
            )
        else:
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        end = tokenizer.eos_token_id
        if end is not None and end not in ids[-2:]:  # templates may put a newline behind it
            ids.append(end)
        encoded_completions.append(Completion(index, tuple(prefix), tuple(ids)))
    return encoded_completions


def token_entropies(
    checkpoint: LoadedCheckpoint, completions: Sequence[Completion]
) -> list[np.ndarray]:
    """Entropy, nats, float32, of the distribution that each token of a completion was drawn from.

    Equal to what is recorded while ``generate`` draws them, up to rounding.
    """

    def values(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_statistics(head_logits(checkpoint, hidden), labels, top_k=1).entropy

    by_row = dict(values_by_row((checkpoint,), completions, values))
    return [by_row[row].float().numpy() for row in range(len(completions))]


def held_out_loss(
    checkpoint: LoadedCheckpoint,
    completions: Sequence[Completion],
    *,
    num_prompts: int,
    processes: Processes = Processes(),
) -> TokenSums:
    """Sum of ``-log p`` over each prompt's completions; ``processes`` share the work."""

    def values(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -token_statistics(head_logits(checkpoint, hidden), labels, top_k=1).log_prob

    return _sums((checkpoint,), completions, values, num_prompts, processes)


def kl_to_base(
    checkpoint: LoadedCheckpoint,
    base: LoadedCheckpoint,
    completions: Sequence[Completion],
    *,
    num_prompts: int,
    processes: Processes = Processes(),
) -> TokenSums:
    """Sum of ``KL(p_checkpoint || p_base)`` over the positions of each prompt's completions.

    ``processes`` share the work.

    Raises:
        ValueError: vocabularies of different sizes.

    """

    def values(
        hidden: torch.Tensor, labels: torch.Tensor, base_hidden: torch.Tensor
    ) -> torch.Tensor:
        logits, base_logits = head_logits(checkpoint, hidden), head_logits(base, base_hidden)
        if logits.shape != base_logits.shape:
            raise ValueError(
                f"{checkpoint.path} has {logits.shape[-1]} tokens in its head and the base "
                f"{base.path} {base_logits.shape[-1]}; the KL needs the base that it was trained "
                "from"
            )
        log_p = logits.log_softmax(-1)
        log_q = base_logits.to(log_p.device).log_softmax(-1)
        p = log_p.exp()
        # A token of probability 0 counts nothing, also where the base gives it -inf.
        return (p * (log_p - log_q)).masked_fill_(p == 0.0, 0.0).sum(-1)

    return _sums((checkpoint, base), completions, values, num_prompts, processes)


def _sums(
    checkpoints: Sequence[LoadedCheckpoint],
    completions: Sequence[Completion],
    values: Any,
    num_prompts: int,
    processes: Processes,
) -> TokenSums:
    """Sum ``values(hidden, labels, *hidden of the others)`` of every token, by prompt."""
    rows = [
        (row, float(part.sum()), len(part))
        for row, part in values_by_row(checkpoints, completions, values, processes)
    ]
    every = sorted(row for part in processes.to_main(rows) for row in part)
    sums, tokens = [0.0] * num_prompts, [0.0] * num_prompts
    for row, total, count in processes.from_main(every):
        sums[completions[row].prompt_index] += total
        tokens[completions[row].prompt_index] += count
    seen = [index for index in range(num_prompts) if tokens[index]]
    return TokenSums(tuple(sums[i] for i in seen), tuple(tokens[i] for i in seen))


def values_by_row(
    checkpoints: Sequence[LoadedCheckpoint],
    completions: Sequence[Completion],
    values: Any,
    processes: Processes = Processes(),
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (row, ``[tokens, ...]`` fp64 on the CPU) of this process's share of the completions.

    Args:
        checkpoints: all of them read the same tokens.
        completions: to read, in batches of similar length.
        values: from hidden states ``[n, H]`` of the first checkpoint, labels ``[n]`` and hidden
            states of the others to ``[n, ...]``, a chunk at a time.
        processes: share the work.

    """
    chunk = chunk_tokens(checkpoints[0])
    for rows in processes.share(row_batches(completions)):
        with torch.inference_mode():
            hidden = [completion_hidden(c, [completions[row] for row in rows]) for c in checkpoints]
            labels = torch.tensor([token for row in rows for token in completions[row].ids])
            parts = [
                values(
                    hidden[0][start : start + chunk],
                    labels[start : start + chunk].to(hidden[0].device),
                    *(other[start : start + chunk] for other in hidden[1:]),
                )
                .double()
                .cpu()
                for start in range(0, len(labels), chunk)
            ]
        lengths = [len(completions[row].ids) for row in rows]
        yield from zip(rows, torch.cat(parts).split(lengths), strict=True)


def chunk_tokens(checkpoint: LoadedCheckpoint) -> int:
    """How many hidden states go through the head at a time."""
    vocabulary = checkpoint.inner_model.get_output_embeddings().weight.shape[0]
    return max(1, _CHUNK_BYTES // (4 * vocabulary))


def row_batches(
    completions: Sequence[Completion], most_tokens: int = _ROW_TOKENS
) -> Iterator[list[int]]:
    """Indices of rows that fit into one pass of so many tokens, padding included; longest first."""
    lengths = [len(c.prompt_ids) + len(c.ids) for c in completions]
    order = sorted(range(len(completions)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def right_padded(
    rows: Sequence[Completion], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of prompts and completions and their mask, ``[rows, width]`` int64."""
    ids = [[*row.prompt_ids, *row.ids] for row in rows]
    return padded(ids, pad_token_id, left=False)


def completion_hidden(checkpoint: LoadedCheckpoint, rows: Sequence[Completion]) -> torch.Tensor:
    """``[tokens, H]``: the hidden state that predicts each completion token, row after row.

    Raises:
        ValueError: a prompt-learning adapter.

    """
    if not checkpoint.pads:
        raise ValueError(
            f"{checkpoint.path} is a prompt-learning adapter; held-out loss and KL are not "
            "implemented for its virtual tokens: leave held_out and base out"
        )
    model = checkpoint.inner_model
    input_ids, mask = right_padded(rows, checkpoint.pad_token_id)
    states = model.base_model(
        input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    return torch.cat(
        [
            states[number, len(row.prompt_ids) - 1 : len(row.prompt_ids) + len(row.ids) - 1]
            for number, row in enumerate(rows)
        ]
    )


def head_logits(checkpoint: LoadedCheckpoint, hidden: torch.Tensor) -> torch.Tensor:
    """``[n, H]`` -> ``[n, V]`` logits in fp32 (fp64 for an fp64 model), scaled and capped."""
    return final_logits(checkpoint.inner_model, hidden)
