"""``entropyfloor diagnose RUN``: stage two on the log of a run that another tool made."""

from collections.abc import Sequence
from pathlib import Path

from entropyfloor.cli.options import JSONFile, check_target, parse
from entropyfloor.io import save_json
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rl.options import DiagnoseOptions

COLLAPSED = 3


def main(argv: Sequence[str]) -> int:
    """Read, judge, print. Returns 3 for a run that has collapsed, else 0; errors are raised."""
    options, flags, source = parse(
        argv,
        *(DiagnoseOptions, JSONFile),
        verb="diagnose",
        description="Read what an RL run logged and say whether its entropy has collapsed, how "
        "many groups taught nothing, and where its pass rate lies to p*: trl's trainer_state.json, "
        "verl's JSON Lines or console log, a CSV file, or a folder of TensorBoard's event files.",
        epilog="Exit code: 3 the run has collapsed, 0 it has not or that cannot be told, 2 usage "
        "or data error.",
        positional=("RUN", "the log, or the run's folder"),
    )
    from entropyfloor.rl.diagnose import diagnose
    from entropyfloor.rl.run_logs import read_run

    check_target(flags.json)
    diagnosis = diagnose(read_run(source, format=options.format, step=options.step), options)
    console = console_for_tables()
    read = ", ".join(f"{what} from {name}" for what, name in diagnosis.columns.items() if name)
    print_line(
        console,
        f"{source} ({diagnosis.format}): steps {diagnosis.first_step} to {diagnosis.last_step} of "
        f"{diagnosis.max_steps}, temperature {diagnosis.temperature:g}; {read or 'nothing known'}",
    )
    first, *others = diagnosis.sentences()
    print_line(console, first, "bold")
    for words in others:
        print_line(console, f"• {words}")
    if flags.json is not None:
        save_json(Path(flags.json), diagnosis.to_dict())
    return COLLAPSED if diagnosis.collapsed else 0
