"""``entropyfloor VERB ...``: one file per verb in this folder, imported when its verb is called.

A command turns errors of a user's data, files or missing extras into exit code 2 and one message;
every other exception is a fault of ours and keeps its traceback. Which is which is said here alone.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from entropyfloor import how_to_install
from entropyfloor.render.text import visible

VERBS = {
    "sft": "train with SEDTrainer: every flag and YAML of `trl sft`, plus our losses",
    "screen": "measure entropy, pass@k and degenerate groups of checkpoints before RL is paid for",
    "compare": "two screened checkpoints prompt by prompt: who is ahead at which k, what was lost",
    "rescue": "move a collapsed checkpoint back towards its base, just above the entropy floor",
    "band": "keep the prompts of which some but not all rollouts pass, for RL",
    "grpo": "train with GRPO in its DAPO variant, watched for collapse: every flag of `trl grpo`",
    "overlap": "which prompts are among the rows of training data: exactly, normalised or nearly",
    "diagnose": "collapse of a run from its log: trl, verl, CSV or TensorBoard",
    "gft": "group fine-tuning: experts and a teacher beside own samples, weighted by advantages",
    "gft-groups": "experts' and a teacher's responses to every prompt, scored, for GFT",
    "echelon": "losses at growing depth, before and after RL, compared: a recipe, resumable",
    "coupling": "what RL did to the SFT loss along a run, SFT to the reward, and how long to train",
    "pstar": "print the majority-degeneration threshold p*(g) of a group size",
    "demo": "CE and SED at three depths on a real model, screened: the whole path on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 usage or data error, or a verb's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print("usage: entropyfloor VERB [options]\n")
        for verb, summary in VERBS.items():
            print(f"  {verb:<10} {summary}")
        print("\n`entropyfloor VERB --help` lists the options of one verb.")
        return 0
    if arguments[0] == "--version":
        from entropyfloor import __version__

        print(f"entropyfloor {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(
            f"entropyfloor: unknown verb {verb!r}; choose one of {', '.join(VERBS)}",
            file=sys.stderr,
        )
        return USAGE_ERROR
    return exit_code(
        verb, lambda: import_module(f"entropyfloor.cli.{verb.replace('-', '_')}").main(rest)
    )


USAGE_ERROR = 2
# The machine's answers about a path that the user gave. A full disk is none of them.
_ABOUT_PATHS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Of libraries, by module and name: looked up where the library is loaded, which it is if it raised.
_OF_LIBRARIES = (
    ("datasets.exceptions", "DatasetsError", "the data cannot be read"),
    ("pyarrow", "ArrowException", "the data cannot be read"),
    ("safetensors", "SafetensorError", "the weights cannot be read: not a whole safetensors file"),
    ("jinja2", "TemplateError", "the chat template refuses the conversation"),
)


def describe(error: BaseException) -> str | None:
    """What to tell the user, or None if this is not about data, files or usage."""
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text ({error}); save it as UTF-8"
    for module, name, meaning in _OF_LIBRARIES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return f"{meaning} ({_innermost(error)})"
    if isinstance(error, (ValueError, *_ABOUT_PATHS)):
        return str(error)
    if isinstance(error, OSError) and error.errno is None:  # transformers' own: not found, say
        return str(error)
    return None


def exit_code(verb: str, run: Callable[[], int]) -> int:
    """Run a command; 2 and a message on standard error where :func:`describe` has words."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe's encoding may lack a table's rules or a prompt's letters.
        sys.stdout.reconfigure(errors="replace")
    try:
        return run()
    except Exception as error:
        words = describe(error)
        if words is None:
            raise
        print(f"entropyfloor {verb}: {visible(words)}", file=sys.stderr)
        return USAGE_ERROR


def _innermost(error: BaseException) -> str:
    """The first cause's own words: what wraps it says only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
