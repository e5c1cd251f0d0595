"""Two models that are built here in seconds, so that an echelon needs no download.

    small        character model for sums mod 100: three GPT-2 layers of width 96, 0.34 M parameters
    small_chat   stand-in for an instruction-tuned model on worked sums: a two-layer Llama with its
                 own byte-level BPE tokenizer and chat template

Both are pretrained on answers that are often wrong. They then do what a real base does before SFT:
they know the format, spread their probability over many answers, and the right one is among them.
That is the place from which SFT sharpens, and RL selects. Each is a Hugging Face model directory
that appears complete or not at all.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from entropyfloor.echelon.modular_sums import CHARACTERS, Row
from entropyfloor.echelon.worked_sums import SumProblem, worked_solutions
from entropyfloor.io import whole_folder

PAD, END = "<pad>", "<end>"
_SCORED = 3  # tokens of a character model's answer: two digits and the end of sequence
_CONTEXT = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Share of the chat model's solutions whose final number is off: enough that it is not good already.
_WRONG_SHARE = 0.2


def character_model(target: Path, rows: Sequence[Row], *, steps: int, seed: int) -> Path:
    """Build the model ``small`` at ``target``, or find it there.

    Args:
        target: the model directory.
        rows: ``prompt`` and ``completion`` to pretrain on.
        steps: pretraining steps of 128 rows.
        seed: of weights and order.

    """

    def build() -> tuple[Any, Any]:
        from transformers import GPT2Config, GPT2LMHeadModel, get_constant_schedule_with_warmup

        tokenizer = character_tokenizer()
        # Positions that are learned, as every digit has its place, and weights three times as wide
        # as GPT-2's: a Llama, or GPT-2's own 0.02, has not begun to add after 500 steps.
        config = GPT2Config(
            **_special_tokens(tokenizer),
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
        )
        model = _trained(
            _random_weights(GPT2LMHeadModel, config, seed),
            _character_batches(tokenizer, rows, random.Random(f"{seed}:pretraining")),
            steps=steps,
            learning_rate=2e-3,
            schedule=partial(get_constant_schedule_with_warmup, num_warmup_steps=50),
        )
        return model, tokenizer

    return _directory(target, build)


def chat_model(target: Path, problems: Sequence[SumProblem], *, steps: int, seed: int) -> Path:
    """Build the model ``small_chat`` at ``target``, or find it there.

    Args:
        target: the model directory.
        problems: what it is pretrained on; keep held-out problems out of them.
        steps: pretraining steps of 32 rows.
        seed: of weights and data.

    """

    def build() -> tuple[Any, Any]:
        from torch.optim.lr_scheduler import OneCycleLR
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = chat_tokenizer(problems)
        config = LlamaConfig(
            **_special_tokens(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        peak = 6e-3
        model = _trained(
            _random_weights(LlamaForCausalLM, config, seed),
            _chat_batches(tokenizer, problems, random.Random(f"{seed}:pretraining")),
            steps=steps,
            learning_rate=peak,
            schedule=lambda adamw: OneCycleLR(adamw, peak, total_steps=steps),
        )
        return model, tokenizer

    return _directory(target, build)


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


def chat_tokenizer(problems: Sequence[SumProblem]) -> Any:
    """A byte-level BPE tokenizer of about 400 tokens; each digit is a token of its own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for problem in problems[:200] for text in worked_solutions(problem)]
    texts += [problem.prompt[0]["content"] for problem in problems[:50]]
    texts += ["user\n", "assistant\n"] * 50
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[2],
        model_max_length=256,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _random_weights(kind: Callable[[Any], Any], config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def _character_batches(
    tokenizer: Any, rows: Sequence[Row], rng: random.Random, batch_size: int = 128
) -> Iterator[dict[str, Any]]:
    """Endless shuffled batches; the loss is on the completion and its end."""
    import torch

    encoded = tokenizer([row["prompt"] + row["completion"] + END for row in rows])["input_ids"]
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += rng.sample(range(len(encoded)), len(encoded))
        chosen, order = order[:batch_size], order[batch_size:]
        ids = torch.tensor([encoded[index] for index in chosen])  # all rows are equally long
        labels = ids.clone()
        labels[:, :-_SCORED] = -100
        yield {"input_ids": ids, "labels": labels}


def _chat_batches(
    tokenizer: Any, problems: Sequence[SumProblem], rng: random.Random, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Endless batches of conversations; the loss is on all tokens but padding."""
    while True:
        conversations = []
        for problem in rng.choices(problems, k=batch_size):
            solution = rng.choice(worked_solutions(problem))
            if rng.random() < _WRONG_SHARE:
                working = solution.rpartition(" ")[0]
                solution = f"{working} {problem.answer + rng.choice([-3, -2, -1, 1, 2, 3])}"
            conversations.append([*problem.prompt, {"role": "assistant", "content": solution}])
        texts = tokenizer.apply_chat_template(conversations, tokenize=False)
        batch = dict(
            tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        )
        padding = batch["attention_mask"] == 0
        yield {**batch, "labels": batch["input_ids"].masked_fill(padding, -100)}


def _trained(
    model: Any,
    batches: Iterator[dict[str, Any]],
    *,
    steps: int,
    learning_rate: float,
    schedule: Callable[[Any], Any],
) -> Any:
    """The model after ``steps`` steps of AdamW; ``schedule``: optimizer -> its scheduler."""
    import torch
    from rich.console import Console
    from rich.progress import track

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    scheduler = schedule(optimizer)
    model.train()
    for _ in track(range(steps), "building a small model", console=Console(stderr=True)):
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


def _directory(target: Path, build: Callable[[], tuple[Any, Any]]) -> Path:
    """``target``; if it is not there, what ``build`` makes is saved beside it, then renamed."""
    if not target.is_dir():
        with whole_folder(target, shared=True) as unfinished:
            for part in build():
                part.save_pretrained(unfinished)
    return target
