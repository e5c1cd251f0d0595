"""Reading given tokens with a checkpoint, with or without gradients.

One door to what ``screening/teacher_forced.py`` does for held-out losses: rows of bounded size
through the backbone, then chunks of hidden states through the head.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.screening import teacher_forced
from entropyfloor.screening.teacher_forced import Completion

CHUNK_BYTES = 64 * 2**20  # logits of one chunk: 341 tokens x 49,152 entries x 4 bytes


def row_batches(completions: Sequence[Completion]) -> Iterator[list[int]]:
    """Indices of completions that go through the backbone together, longest first."""
    return teacher_forced._batches(completions)


def hidden_states(checkpoint: LoadedCheckpoint, rows: Sequence[Completion]) -> Tensor:
    """``[tokens, H]``: the hidden state that predicts each completion token, row after row.

    Raises:
        ValueError: a prompt-learning adapter, whose virtual tokens are not implemented.

    """
    teacher_forced._check(checkpoint)
    return teacher_forced._hidden(checkpoint, rows)


def head_logits(checkpoint: LoadedCheckpoint, hidden: Tensor) -> Tensor:
    """``[n, H]`` -> ``[n, V]`` logits in fp32 (fp64 for an fp64 model), scaled and capped."""
    return teacher_forced._logits(checkpoint, hidden)


def chunk_tokens(checkpoint: LoadedCheckpoint) -> int:
    """How many hidden states go through the head at a time."""
    vocabulary = checkpoint.inner_model.get_output_embeddings().weight.shape[0]
    return max(1, CHUNK_BYTES // (4 * vocabulary))
