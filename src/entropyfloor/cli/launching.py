"""Command lines of trl's kind: flags and YAML of its dataclasses, and ``accelerate launch``'s own.

Shared by the training verbs. A flag that neither the trainer nor the launcher knows is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropyfloor.cli.options import refuse


@dataclass
class Arguments:
    """What a training verb was asked for."""

    script: Any  # trl's script arguments: which rows, and what the verb adds
    training: Any  # the trainer's configuration
    model: Any  # trl's ModelConfig
    mixture: Any  # trl's DatasetMixtureConfig: datasets: of a YAML file
    launch_in_file: list[str]  # words of the launcher in the YAML file
    launch_in_command: list[str]  # words of the launcher on the command line

    @property
    def launch(self) -> list[str]:
        """The launcher's words, if this process is to start others; none in those it started."""
        if "LOCAL_RANK" in os.environ:  # which torchrun and accelerate set
            return []
        return self.launch_in_file + self.launch_in_command

    def script_words(self, argv: Sequence[str]) -> list[str]:
        """``argv`` without the launcher's words, which appear in it in this order."""
        waiting, kept = list(self.launch_in_command), []
        for word in argv:
            if waiting and word == waiting[0]:
                waiting.pop(0)
            else:
                kept.append(word)
        return kept


def parse_training(
    argv: Sequence[str], *, script: type, training: type, verb: str, description: str
) -> Arguments:
    """Read command line and YAML.

    Args:
        argv: the words after the verb.
        script: trl's script arguments or a dataclass derived from them; its fields are flags.
        training: the trainer's configuration; its fields are flags.
        verb: for messages.
        description: for --help.

    Raises:
        ValueError: a word that nobody knows, or a file that is not YAML.

    """
    import yaml
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    classes = (script, training, ModelConfig, DatasetMixtureConfig)
    parser = TrlParser(classes, prog=f"entropyfloor {verb}", description=description)
    try:
        *groups, in_file, in_command = parser.parse_args_and_config(
            _config_as_two_words(argv),
            return_remaining_strings=True,
            separate_remaining_strings=True,
        )
    except yaml.YAMLError as error:
        raise ValueError(f"the --config file is not YAML: {error}") from error
    _check_launch_words(in_file, set(parser._option_string_actions), verb)
    _check_launch_words(in_command, set(parser._option_string_actions), verb)
    rows, trainer, model, mixture = groups
    return Arguments(rows, trainer, model, mixture, in_file, in_command)


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
