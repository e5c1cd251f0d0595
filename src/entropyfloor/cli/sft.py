"""``entropyfloor sft``: train with SEDTrainer; every flag and YAML of ``trl sft``, plus the losses.

    entropyfloor sft --model_name_or_path MODEL --dataset_name rows.jsonl --output_dir out

Differences from ``trl sft``: --dataset_name also takes a JSON, JSON Lines, CSV or Parquet file and
a ``save_to_disk`` folder; weights are loaded from safetensors only; --resume_from_checkpoint true
takes the last checkpoint of the output directory; an unknown flag is an error. It trains in this
process. Flags of ``accelerate launch`` (--num_processes 2, --accelerate_config fsdp2) start it
under that launcher instead, as ``trl sft`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trl import ScriptArguments

from entropyfloor.cli.launching import Arguments, parse_training
from entropyfloor.cli.prompt_flags import chat_options
from entropyfloor.cli.training_command import end, loading, push, run, run_launched, train_and_save
from entropyfloor.cli.training_inputs import model_init_kwargs, rows_for_sft
from entropyfloor.rollouts.options import TemplateOptions


@dataclass
class SFTArguments(TemplateOptions, ScriptArguments):
    """trl's script arguments and ours."""


def main(argv: Sequence[str]) -> int:
    """Parse, train, save. Returns 0; errors of usage and data are raised."""
    return run(argv, _parse, _train, module=__name__)


def _parse(argv: Sequence[str]) -> Arguments:
    """Read command line and YAML; refuse words that nobody knows."""
    from entropyfloor import SEDConfig

    return parse_training(
        argv,
        script=SFTArguments,
        training=SEDConfig,
        verb="sft",
        description="Supervised fine-tuning with an entropy-preserving loss.",
    )


def _train(arguments: Arguments) -> int:
    from trl import get_peft_config, get_quantization_config

    from entropyfloor import SEDTrainer

    training, model = arguments.training, arguments.model
    training.model_init_kwargs = model_init_kwargs(training, model)
    script = arguments.script
    options = chat_options(script, script.chat_template_kwargs)
    train_rows, test_rows = rows_for_sft(arguments, options)
    if script.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_trained_on

        return say_what_is_trained_on(arguments, train_rows)
    with loading(model.model_name_or_path):
        trainer = SEDTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    train_and_save(trainer, arguments)
    trainer.accelerator.print(
        "Before paying for RL, measure what it would start from:\n"
        f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl --reward exact_match"
    )
    push(trainer, arguments)
    end(trainer)
    return 0


if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(run_launched("sft", _parse, _train))
