"""The small model: a character transformer of 0.34 M parameters, pretrained on noisy sums.

Three GPT-2 layers of width 96 and a tokenizer with one token per character, as a Hugging Face model
directory that every trainer and ``screen`` take. Its pretraining answers are mostly random, so the
base knows the format and a little arithmetic: it spreads its probability over many answers, the
right one among them. That is the place from which SFT sharpens, and RL selects.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from entropyfloor.echelon.scratch_model import model_directory, train_from_scratch
from entropyfloor.echelon.small_task import CHARACTERS, Row

PAD, END = "<pad>", "<end>"
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 50
_CONTEXT = 32
_BATCH_SIZE = 128
_SCORED = 3  # two digits and the end of sequence


def small_model_directory(target: Path, rows: Sequence[Row], *, steps: int, seed: int) -> Path:
    """Build the base model at ``target``, or find it there; it appears complete or not at all.

    Args:
        target: the model directory.
        rows: ``prompt`` and ``completion`` to pretrain on: ``SmallTask.pretraining``.
        steps: pretraining steps of 128 rows.
        seed: of weights and order.

    """

    def build() -> tuple[Any, Any]:
        from transformers import get_constant_schedule_with_warmup

        tokenizer = character_tokenizer()
        batches = _batches(tokenizer, rows, random.Random(f"{seed}:pretraining"))
        model = train_from_scratch(
            _random_model(tokenizer, seed),
            batches,
            steps=steps,
            learning_rate=_LEARNING_RATE,
            schedule=partial(get_constant_schedule_with_warmup, num_warmup_steps=_WARMUP_STEPS),
        )
        return model, tokenizer

    return model_directory(target, build)


def character_tokenizer() -> Any:
    """Fourteen tokens: padding, end of sequence, and the task's characters.

    Other characters raise an error when they are tokenised.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, END, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=_CONTEXT
    )


def _random_model(tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    # Positions that are learned, as every digit has its place, and weights three times as wide as
    # GPT-2's: a Llama, or GPT-2's own 0.02, has not begun to add after 500 steps.
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=96,
        n_layer=3,
        n_head=4,
        n_positions=_CONTEXT,
        # GPT-2's own function, in one kernel: a fifth less time per step on a CPU.
        activation_function="gelu_pytorch_tanh",
        initializer_range=0.06,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def _batches(tokenizer: Any, rows: Sequence[Row], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Endless shuffled batches; the loss is on the completion and its end."""
    import torch

    encoded = tokenizer([row["prompt"] + row["completion"] + END for row in rows])["input_ids"]
    order: list[int] = []
    while True:
        while len(order) < _BATCH_SIZE:
            order += rng.sample(range(len(encoded)), len(encoded))
        chosen, order = order[:_BATCH_SIZE], order[_BATCH_SIZE:]
        ids = torch.tensor([encoded[index] for index in chosen])  # all rows are equally long
        labels = ids.clone()
        labels[:, :-_SCORED] = -100
        yield {"input_ids": ids, "labels": labels}
