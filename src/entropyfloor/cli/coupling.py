"""``entropyfloor coupling``: what RL did to the SFT loss along a run, or SFT to the reward."""

from collections.abc import Sequence
from dataclasses import dataclass

from entropyfloor.cli.options import JSONFile, check_target, parse
from entropyfloor.coupling.options import CouplingOptions, RunOptions
from entropyfloor.render.text import console_for_tables
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling, flag


@dataclass(frozen=True)
class _Flags(JSONFile):
    """What the command alone has."""

    demos: str = flag(
        "",
        "held-out demonstrations: JSONL or save_to_disk folder, columns prompt, completion",
        metavar="SPEC",
    )


def main(argv: Sequence[str]) -> int:
    """Measure, print table and findings, write what was asked for. Returns 0; errors are raised."""
    run, options, flags, sampling, coupling, loading, output = parse(
        argv,
        *(RunOptions, PromptOptions, _Flags, Sampling, CouplingOptions, Loading, Output),
        verb="coupling",
        description="SFT loss on held-out demonstrations against reward on held-out prompts along "
        "a run, KL divergences, gradient alignment, and how long to train.",
        required=("sft", "rl", "demos", "prompts", "reward"),
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.coupling.couple import measure_coupling
    from entropyfloor.coupling.table import coupling_terminal

    if options.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled

        return say_what_is_sampled(
            options, sampling, loading, [*run.sft, *run.rl], options.load(flags.demos)
        )
    check_target(flags.json)
    report = measure_coupling(
        run,
        options.load(flags.demos),
        options.load(),
        options.reward,
        coupling=coupling,
        sampling=sampling,
        loading=loading,
        output=output,
    )
    console = console_for_tables()
    for part in coupling_terminal(report, console.width):
        console.print(part)
    if flags.json is not None:
        report.write_json(flags.json)
    return 0
