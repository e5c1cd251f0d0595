"""A verb that trains (``sft``, ``grpo``, ``gft``): parse, launch or train here, load, train, save.

Command lines are of trl's kind: flags and YAML of its dataclasses, and ``accelerate launch``'s own.
A flag that neither the trainer nor the launcher knows is an error. The verb's module is also the
program that ``accelerate launch`` starts in each process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.cli.main import exit_code
from entropyfloor.cli.options import refuse
from entropyfloor.cli.training_inputs import Arguments, loading, model_init_kwargs


@dataclass(frozen=True)
class Job:
    """What a verb trains, once everything is checked that can be without weights."""

    trainer: Any  # a class of trl's kind
    rows: tuple[Any, Any]  # to train and to evaluate on; None without the latter
    options: Mapping[str, Any]  # of the class, beside what every trainer takes
    after: Callable[[Any], None]  # called with the trainer when the model is saved


@dataclass(frozen=True)
class TrainingVerb:
    """One verb; its fields are what the verbs differ in."""

    name: str
    description: str  # for --help
    script: type  # trl's script arguments or a dataclass derived from them; its fields are flags
    training: type  # the trainer's configuration; its fields are flags
    prepare: Callable[[Arguments], Job]

    def main(self, argv: Sequence[str]) -> int:
        """Train in this process, or start the verb's module under the launcher if asked to.

        Returns the exit code; errors of usage and data are raised.
        """
        arguments = self.parse(argv)
        if words := arguments.launch:
            return launch(words, arguments.script_words(argv), module=self.prepare.__module__)
        return self.train(arguments)

    def run_launched(self) -> int:
        """Train in a process of ``accelerate launch``, whose flags have been followed."""
        return exit_code(self.name, lambda: self.train(self.parse(sys.argv[1:])))

    def train(self, arguments: Arguments) -> int:
        """Check, load, train, resuming where --resume_from_checkpoint says, save, push."""
        from trl import get_peft_config, get_quantization_config

        script, training, model = arguments.script, arguments.training, arguments.model
        training.model_init_kwargs = model_init_kwargs(training, model)
        job = self.prepare(arguments)
        if script.dry_run:
            from entropyfloor.cli.dry_run import say_what_is_trained_on

            return say_what_is_trained_on(arguments, job.rows[0])
        with loading(model.model_name_or_path):
            trainer = job.trainer(
                **{
                    "model": model.model_name_or_path,
                    "args": training,
                    "train_dataset": job.rows[0],
                    "eval_dataset": job.rows[1],
                    "quantization_config": get_quantization_config(model),
                    "peft_config": get_peft_config(model),
                    **job.options,
                }
            )
        trainer.train(resume_from_checkpoint=_resume_flag(training.resume_from_checkpoint))
        trainer.save_model(training.output_dir)
        say = trainer.accelerator.print
        say(f"Model saved to {training.output_dir}")
        if training.push_to_hub:
            trainer.push_to_hub(dataset_name=script.dataset_name)
            say(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}")
        job.after(trainer)
        # gloo's threads need Python's lock to let go of the last exchange, and the end of a process
        # group waits for them with the lock held: for ever, if one is late. A barrier has no lock.
        trainer.accelerator.wait_for_everyone()
        # Trackers and process groups; Trainer has a method for it since transformers 5.18.
        getattr(trainer, "end", trainer.accelerator.end_training)()
        return 0

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Read command line and YAML.

        Raises:
            ValueError: a word that nobody knows, or a file that is not YAML.

        """
        import yaml
        from trl import DatasetMixtureConfig, ModelConfig, TrlParser

        parser = TrlParser(
            (self.script, self.training, ModelConfig, DatasetMixtureConfig),
            prog=f"entropyfloor {self.name}",
            description=self.description,
        )
        try:
            *groups, in_file, in_command = parser.parse_args_and_config(
                _config_as_two_words(argv),
                return_remaining_strings=True,
                separate_remaining_strings=True,
            )
        except yaml.YAMLError as error:
            raise ValueError(f"the --config file is not YAML: {error}") from error
        for words in (in_file, in_command):
            _check_launch_words(words, set(parser._option_string_actions), self.name)
        script, training, model, mixture = groups
        return Arguments(script, training, model, mixture, in_file, in_command)


def launch(words: list[str], script_words: list[str], *, module: str) -> int:
    """Start ``python -m module script_words`` under ``accelerate launch words``."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    every = [*resolve_accelerate_config_argument(words), "--module", module, *script_words]
    launch_command(launch_command_parser().parse_args(every))
    return 0


def _config_as_two_words(argv: Sequence[str]) -> list[str]:
    """``--config=FILE`` as two words, the only form that TrlParser knows."""
    words: list[str] = []
    for word in argv:
        words.extend(word.split("=", 1) if word.startswith("--config=") else [word])
    if words.count("--config") > 1 or words[-1:] == ["--config"]:
        raise ValueError("--config takes one YAML file, and may be given once")
    return words


def _check_launch_words(words: list[str], known: set[str], verb: str) -> None:
    """Refuse what neither the trainer nor ``accelerate launch`` knows."""
    if not words:
        return
    from accelerate.commands.launch import launch_command_parser

    launcher = {"--accelerate_config", *launch_command_parser()._option_string_actions}
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    unknown = [words[0]] if not words[0].startswith("--") else []
    unknown += [flag for flag in flags if flag not in launcher]
    if unknown:
        refuse(unknown[0], known | launcher, verb)


def _resume_flag(value: Any) -> Any:
    """--resume_from_checkpoint as ``Trainer.train`` takes it: true and false are no paths."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    return value
