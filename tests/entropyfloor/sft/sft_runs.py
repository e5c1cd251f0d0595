"""Tiny training runs on the CPU. One function builds SFTTrainer and SEDTrainer alike.

Rows differ in length on purpose: micro-batches and ranks then hold unequal numbers of scored
tokens, which is where a wrong normalisation shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from torch import Tensor
from trl import SFTConfig

from entropyfloor import SEDConfig, SEDTrainer
from tiny_models import tiny_model, tiny_tokenizer

# trl's own trainer: what ours is compared with, where it runs at all.
needs_sft_trainer = pytest.mark.skipif(
    trl.__version__ == "1.15.0" and not torch.cuda.is_available(),
    reason="SFTTrainer of trl 1.15.0 needs Triton, on a CPU too",
)
needs_mended_trl = pytest.mark.skipif(
    Version(trl.__version__) < Version("1.15"), reason="trl below 1.15"
)
sed_trainer_with_ce = partial(SEDTrainer, loss="ce")


def prompt_completion_rows(count: int = 24) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": f"{i} + {i * i} =", "completion": f" {i + i * i}." * (1 + i % 4)}
            for i in range(count)
        ]
    )


def text_rows(count: int = 24) -> Dataset:
    return Dataset.from_list([{"text": f"row {i}: " + "ab" * (1 + i % 5)} for i in range(count)])


def conversation_rows(count: int = 24) -> Dataset:
    def messages(i: int) -> list[dict[str, str]]:
        turn = [
            {"role": "user", "content": f"what is {i}?"},
            {"role": "assistant", "content": f"{i}, " * (1 + i % 3)},
        ]
        return turn * (1 + i % 2)

    return Dataset.from_list([{"messages": messages(i)} for i in range(count)])


def arguments(
    output_dir: Any, config_class: Callable[..., Any] = SFTConfig, **overrides: Any
) -> Any:
    """Four steps in fp32 on the CPU, every step logged; ``overrides`` win."""
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        # Not Adam: it divides by the gradient's size, so rounding noise in a gradient that is zero
        # (GPT-2's key bias, say) becomes a step of full length.
        "optim": "sgd",
        "learning_rate": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return config_class(output_dir=str(output_dir), **{**defaults, **overrides})


def build(trainer_class: Callable[..., Any], args: Any, **trainer_arguments: Any) -> Any:
    """The trainer on a tiny Llama and prompt-completion rows, unless told otherwise."""
    given = {
        "model": trainer_arguments.pop("model", None) or tiny_model(),
        "train_dataset": prompt_completion_rows(),
        "processing_class": tiny_tokenizer(),
        **trainer_arguments,
    }
    return trainer_class(args=args, **given)


def sed_trainer(output_dir: Any, *, trainer: dict[str, Any] | None = None, **config: Any) -> Any:
    return build(SEDTrainer, arguments(output_dir, SEDConfig, **config), **(trainer or {}))


@dataclass
class Run:
    """What a finished run leaves behind."""

    trainer: Any
    steps: list[dict[str, float]]
    evaluations: list[dict[str, float]]

    @classmethod
    def of(cls, trainer: Any, **train_arguments: Any) -> Run:
        trainer.train(**train_arguments)
        history = trainer.state.log_history
        return cls(
            trainer,
            [entry for entry in history if "loss" in entry],
            [entry for entry in history if "eval_loss" in entry],
        )

    def series(self, name: str) -> list[float]:
        return [step[name] for step in self.steps]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.trainer.model.named_parameters()}


def assert_same_run(ours: Run, theirs: Run, *, loss: float = 1e-6, others: float = 1e-5) -> None:
    """Losses, trl's own metrics, evaluations and final weights of two runs agree.

    Args:
        ours: may log metrics that ``theirs`` does not have.
        theirs: the reference.
        loss: relative and absolute tolerance of the losses, step by step.
        others: the same for gradient norms, trl's metrics and the final weights.

    """
    assert len(ours.steps) == len(theirs.steps) > 0
    assert len(ours.evaluations) == len(theirs.evaluations)
    pairs = zip(ours.steps + ours.evaluations, theirs.steps + theirs.evaluations, strict=True)
    for mine, other in pairs:
        for name, value in other.items():
            if name.endswith(("runtime", "per_second")):
                continue
            tolerance = loss if name in {"loss", "eval_loss"} else others
            assert mine[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    assert all(step["grad_norm"] > 0 for step in theirs.steps)
    assert set(ours.weights) == set(theirs.weights)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(weight, theirs.weights[name], rtol=others, atol=others)
