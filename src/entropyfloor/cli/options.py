"""Flags from dataclasses, as transformers and trl read them: the one place that parses a verb.

``--max_new_tokens 32`` and ``--max-new-tokens 32`` are the same flag; a switch that is on by
default is turned off by ``--no_NAME``.
"""

import difflib
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

from entropyfloor.rollouts.options import flag


class _Help(ArgumentDefaultsHelpFormatter):
    """One spelling of every flag, and its default where it has one."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = action.option_strings[:1]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: Action) -> str | None:
        if action.option_strings[:1] == [f"--no_{action.dest}"]:
            return f"turn --{action.dest} off"
        if action.default in (None, []) or isinstance(action.default, bool):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


def parse(
    argv: Sequence[str],
    *kinds: type,
    verb: str,
    description: str,
    epilog: str = "",
    positional: tuple[Any, ...] = (),
    required: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Read the words of one verb.

    Args:
        argv: the words after the verb.
        kinds: dataclasses whose fields are its flags.
        verb: for messages.
        description: for ``--help``.
        epilog: for ``--help``.
        positional: of the one argument that is no flag: its name and help, and ``nargs`` if it is
            not one word.
        required: flags that must be given.
        defaults: where they differ from the dataclasses'.

    Returns:
        An instance of every dataclass, and after them the positional argument's value.

    Raises:
        ValueError: a word that nobody knows, or a value that a dataclass refuses.

    """
    words = f" {positional[0]}" if positional else ""
    parser = HfArgumentParser(
        kinds,
        prog=f"entropyfloor {verb}",
        usage=f"entropyfloor {verb}{words} [--FLAG VALUE ...]",
        description=description,
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    if positional:
        options = dict(zip(("metavar", "help", "nargs"), positional, strict=False))
        parser.add_argument("positional", **options)
    for action in parser._actions:
        action.required = action.required or action.dest in required
    parser.set_defaults(**(defaults or {}))
    *values, rest = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        word = next((word.split("=")[0] for word in rest if word.startswith("-")), rest[0])
        refuse(word, parser._option_string_actions, verb)
    if positional:
        values[-1] = values[-1].positional
    return values


def explicit_options(argv: Sequence[str], kind: type) -> dict[str, Any]:
    """What the words say of one dataclass's fields, and nothing of those that they leave out."""
    parser = HfArgumentParser([kind], add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.default = SUPPRESS
    return vars(parser.parse_known_args(list(argv))[0])


def refuse(word: str, known: Iterable[str], verb: str) -> None:
    """Raise ValueError for a word that nobody knows, with the closest one that is known."""
    close = difflib.get_close_matches(word, list(known), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"unknown argument {word}.{hint} `entropyfloor {verb} --help` lists all of them"
    )


def check_target(target: str | None) -> None:
    """Make the folder of a file that is to be written; ValueError if it is a folder itself."""
    if target is not None:
        if Path(target).is_dir():
            raise ValueError(f"{target} is a directory; name the file to write")
        Path(target).parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class JSONFile:
    """The flag of verbs that say what they found."""

    json: str | None = flag(None, "write it as JSON", metavar="FILE")


@dataclass(frozen=True)
class ReportFiles(JSONFile):
    """Flags of verbs that report."""

    markdown: str | None = flag(None, "write the table as Markdown", metavar="FILE")
    html: str | None = flag(None, "write one self-contained HTML page", metavar="FILE")
    plot: str | None = flag(None, "write the plot as PNG", metavar="FILE")

    def check(self) -> None:
        """Raise ValueError, before compute is spent, for a file that cannot be written."""
        for target in (self.json, self.markdown, self.html, self.plot):
            check_target(target)
        if self.plot is not None:
            from entropyfloor.render.figure import check_suffix  # matplotlib

            check_suffix(self.plot)
