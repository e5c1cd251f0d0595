from __future__ import annotations

import sys
from dataclasses import dataclass

from trl import ScriptArguments

from entropyfloor.cli.training_command import (
    Arguments,
    TrainingVerb,
    end,
    push,
    train_and_save,
    trainer_of,
)
from entropyfloor.cli.training_inputs import chat_options, model_init_kwargs, rows_for_sft
from entropyfloor.rollouts.options import TemplateOptions
from entropyfloor.sft.sed_config import SEDConfig


@dataclass
class SFTArguments(TemplateOptions, ScriptArguments):
    """trl's script arguments and ours."""


def _train(arguments: Arguments) -> int:
    from entropyfloor import SEDTrainer

    script, training = arguments.script, arguments.training
    training.model_init_kwargs = model_init_kwargs(training, arguments.model)
    rows = rows_for_sft(arguments, chat_options(script, script.chat_template_kwargs))
    if script.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_trained_on

        return say_what_is_trained_on(arguments, rows[0])
    trainer = trainer_of(SEDTrainer, arguments, rows)
    train_and_save(trainer, arguments)
    trainer.accelerator.print(
        "Before paying for RL, measure what it would start from:\n"
        f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl --reward exact_match"
    )
    push(trainer, arguments)
    end(trainer)
    return 0


VERB = TrainingVerb(
    "sft",
    "Supervised fine-tuning with an entropy-preserving loss.",
    SFTArguments,
    SEDConfig,
    _train,
)
main = VERB.main

if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(VERB.run_launched())
