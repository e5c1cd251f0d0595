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
from typing import Any

from entropyfloor.cli.launching import Parsed, launch, parse_training
from entropyfloor.cli.training_inputs import load_rows, model_init_kwargs, resume_flag, split_of


@dataclass
class _Arguments:
    """What was asked for, in trl's groups."""

    script: Any
    training: Any
    model: Any
    mixture: Any
    parsed: Parsed


def main(argv: Sequence[str]) -> int:
    """Parse, train, save. Returns 0; errors of usage and data are raised."""
    arguments = _parse(argv)
    if words := arguments.parsed.launch:
        return launch(words, arguments.parsed.own(argv), module=__name__)
    return _train(arguments)


def _parse(argv: Sequence[str]) -> _Arguments:
    """Read command line and YAML; refuse words that nobody knows."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from entropyfloor import SEDConfig

    parsed = parse_training(
        (ScriptArguments, SEDConfig, ModelConfig, DatasetMixtureConfig),
        argv,
        verb="sft",
        description="Supervised fine-tuning with an entropy-preserving loss.",
    )
    script, training, model, mixture = parsed.groups
    return _Arguments(script, training, model, mixture, parsed)


def _train(arguments: _Arguments) -> int:
    from trl import get_peft_config, get_quantization_config

    from entropyfloor import SEDTrainer

    training, model = arguments.training, arguments.model
    training.model_init_kwargs = model_init_kwargs(training, model)
    dataset = load_rows(arguments.script, arguments.mixture)
    train_rows = split_of(dataset, arguments.script.dataset_train_split, "train")
    test_rows = None
    if training.eval_strategy != "no":
        test_rows = split_of(dataset, arguments.script.dataset_test_split, "test")
    try:
        trainer = SEDTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    except OSError as error:
        if error.errno is not None:  # the machine's own: a full disk, say
            raise
        raise ValueError(f"{model.model_name_or_path} cannot be loaded: {error}") from error
    trainer.train(resume_from_checkpoint=resume_flag(training.resume_from_checkpoint))
    trainer.save_model(training.output_dir)
    say = trainer.accelerator.print
    say(f"Model saved to {training.output_dir}")
    say(
        "Before paying for RL, measure what it would start from:\n"
        f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl --reward exact_match"
    )
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
        say(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}")
    trainer.end()
    return 0


if __name__ == "__main__":  # a process of `accelerate launch`, whose flags have been followed
    try:
        sys.exit(_train(_parse(sys.argv[1:])))
    except (ValueError, FileNotFoundError) as error:
        print(f"entropyfloor sft: {error}", file=sys.stderr)
        sys.exit(2)
