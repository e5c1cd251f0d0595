"""A training verb on the command line: its words, and what it says when it refuses them."""

from entropyfloor.cli.main import main

# Kept short and quiet.
_QUIET = {
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
}


def verb_words(**flags):
    """``--NAME VALUE ...`` of every flag and of what keeps a run short; None leaves a flag out."""
    return [
        part
        for name, value in {**_QUIET, **flags}.items()
        if value is not None
        for part in (f"--{name}", *(value if isinstance(value, list) else [str(value)]))
    ]


def error_of(verb, argv, capsys):
    """What the verb prints on standard error, having left with exit code 2."""
    assert main([verb, *argv]) == 2
    return capsys.readouterr().err
