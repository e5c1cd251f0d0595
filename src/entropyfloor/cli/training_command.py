"""The frame of a verb that trains (``sft``, ``grpo``): launch or train here, load, train, save.

A verb brings two functions: ``parse`` (words to ``Arguments``) and ``train`` (``Arguments`` to an
exit code). Its module is also the program that ``accelerate launch`` starts in each process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from entropyfloor.cli.errors import exit_code
from entropyfloor.cli.launching import Arguments, launch

Parse = Callable[[Sequence[str]], Arguments]
Train = Callable[[Arguments], int]


def run(argv: Sequence[str], parse: Parse, train: Train, *, module: str) -> int:
    """Train in this process, or start ``module`` under the launcher if its flags are given.

    Returns the exit code; errors of usage and data are raised.
    """
    arguments = parse(argv)
    if words := arguments.launch:
        return launch(words, arguments.script_words(argv), module=module)
    return train(arguments)


def run_launched(verb: str, parse: Parse, train: Train) -> int:
    """Train in a process of ``accelerate launch``, whose flags have been followed."""
    return exit_code(verb, lambda: train(parse(sys.argv[1:])))


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A model that cannot be found or read is an error of usage.

    Raises:
        ValueError: instead of transformers' own OSError.

    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the machine's own: a full disk, say
            raise
        raise ValueError(f"{name} cannot be loaded: {error}") from error


def train_and_save(trainer: Any, arguments: Arguments) -> None:
    """Train, resuming where --resume_from_checkpoint says, and write the model."""
    training = arguments.training
    trainer.train(resume_from_checkpoint=_resume_flag(training.resume_from_checkpoint))
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Model saved to {training.output_dir}")


def push(trainer: Any, arguments: Arguments) -> None:
    """--push_to_hub."""
    if arguments.training.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}")


def end(trainer: Any) -> None:
    """Close trackers and process groups; Trainer has a method for it since transformers 5.18."""
    getattr(trainer, "end", trainer.accelerator.end_training)()


def _resume_flag(value: Any) -> Any:
    """--resume_from_checkpoint as ``Trainer.train`` takes it: true and false are no paths."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    return value
