from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from trl import ScriptArguments

from entropyfloor.cli.training_command import Job, TrainingVerb
from entropyfloor.cli.training_inputs import Arguments, chat_options, rows_for_sft
from entropyfloor.rollouts.options import TemplateOptions
from entropyfloor.sft.sed_config import SEDConfig


@dataclass
class SFTArguments(TemplateOptions, ScriptArguments):
    """trl's script arguments and ours."""


def _prepare(arguments: Arguments) -> Job:
    from entropyfloor import SEDTrainer

    script, folder = arguments.script, arguments.training.output_dir

    def say_what_is_next(trainer: Any) -> None:
        trainer.accelerator.print(
            "Before paying for RL, measure what it would start from:\n"
            f"  entropyfloor screen {folder} --prompts PROMPTS.jsonl --reward exact_match"
        )

    rows = rows_for_sft(arguments, chat_options(script, script.chat_template_kwargs))
    return Job(SEDTrainer, rows, {}, say_what_is_next)


VERB = TrainingVerb(
    "sft",
    "Supervised fine-tuning with an entropy-preserving loss.",
    SFTArguments,
    SEDConfig,
    _prepare,
)
main = VERB.main

if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(VERB.run_launched())
