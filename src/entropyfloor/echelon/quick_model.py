"""A small stand-in for a pretrained model, built in seconds, for ``entropyfloor demo --quick``.

A two-layer Llama with its own byte-level BPE tokenizer and chat template, taught the task's
*format* on problems of its own whose answers are often wrong. It then does what the real model does
at the start of the demo: it writes many kinds of working, and sometimes the right answer. Nothing
is downloaded.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.echelon.scratch_model import model_directory, train_from_scratch
from entropyfloor.echelon.tasks import SumProblem, worked_solutions

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Share of solutions whose final number is off: enough that the base is not already good, as in the
# toy of METHODS.md.
WRONG_SHARE = 0.2
_BATCH_SIZE = 32
_PEAK_LEARNING_RATE = 6e-3


def quick_model_directory(
    target: Path, problems: Sequence[SumProblem], *, steps: int, seed: int
) -> Path:
    """Build the model at ``target``, or find it there; it appears complete or not at all.

    Args:
        target: the model directory.
        problems: what it is pretrained on; keep held-out problems out of them.
        steps: pretraining steps of 32 rows.
        seed: of weights and data.

    """

    def build() -> tuple[Any, Any]:
        from torch.optim.lr_scheduler import OneCycleLR

        tokenizer = build_tokenizer(problems)
        batches = _batches(tokenizer, problems, random.Random(f"{seed}:pretraining"))
        model = train_from_scratch(
            _random_model(tokenizer, seed),
            batches,
            steps=steps,
            learning_rate=_PEAK_LEARNING_RATE,
            schedule=lambda adamw: OneCycleLR(adamw, _PEAK_LEARNING_RATE, total_steps=steps),
        )
        return model, tokenizer

    return model_directory(target, build)


def build_tokenizer(problems: Sequence[SumProblem]) -> Any:
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


def _random_model(tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _batches(
    tokenizer: Any, problems: Sequence[SumProblem], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Endless batches of conversations; the loss is on all tokens but padding."""
    while True:
        conversations = []
        for problem in rng.choices(problems, k=_BATCH_SIZE):
            solution = rng.choice(worked_solutions(problem))
            if rng.random() < WRONG_SHARE:
                working = solution.rpartition(" ")[0]
                solution = f"{working} {problem.answer + rng.choice([-3, -2, -1, 1, 2, 3])}"
            conversations.append([*problem.prompt, {"role": "assistant", "content": solution}])
        texts = tokenizer.apply_chat_template(conversations, tokenize=False)
        batch = dict(
            tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        )
        yield {
            **batch,
            "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100),
        }
