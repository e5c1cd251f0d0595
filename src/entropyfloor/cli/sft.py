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

from entropyfloor.cli.launching import Arguments, parse_training
from entropyfloor.cli.training_command import loading, push, run, run_launched, train_and_save
from entropyfloor.cli.training_inputs import load_rows, model_init_kwargs, split_of


def main(argv: Sequence[str]) -> int:
    """Parse, train, save. Returns 0; errors of usage and data are raised."""
    return run(argv, _parse, _train, module=__name__)


def _parse(argv: Sequence[str]) -> Arguments:
    """Read command line and YAML; refuse words that nobody knows."""
    from trl import ScriptArguments

    from entropyfloor import SEDConfig

    return parse_training(
        argv,
        script=ScriptArguments,
        training=SEDConfig,
        verb="sft",
        description="Supervised fine-tuning with an entropy-preserving loss.",
    )


def _train(arguments: Arguments) -> int:
    from trl import get_peft_config, get_quantization_config

    from entropyfloor import SEDTrainer

    training, model = arguments.training, arguments.model
    training.model_init_kwargs = model_init_kwargs(training, model)
    dataset = load_rows(arguments.script, arguments.mixture)
    train_rows = split_of(dataset, arguments.script.dataset_train_split, "train")
    test_rows = None
    if training.eval_strategy != "no":
        test_rows = split_of(dataset, arguments.script.dataset_test_split, "test")
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
    trainer.end()
    return 0


if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(run_launched("sft", _parse, _train))
