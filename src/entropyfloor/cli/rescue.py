"""``entropyfloor rescue CKPT --base BASE``: the smallest step back that clears the floor."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from entropyfloor.cli.options import parse
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling
from entropyfloor.screening.options import RescueOptions


def main(argv: Sequence[str]) -> int:
    """Rescue, print the points and where the checkpoint lies. Returns 0; errors are raised."""
    prompt_options, options, sampling, loading, output, checkpoint = parse(
        argv,
        *(PromptOptions, RescueOptions, Sampling, Loading, Output),
        verb="rescue",
        description="Interpolate a collapsed checkpoint towards its base, the smallest step whose "
        "rollouts clear the entropy floor (the lower end of the 95 %% interval). A rerun into the "
        "same folder goes on where it was stopped.",
        positional=("CKPT", "model directory or LoRA adapter"),
        required=("prompts", "base", "output_dir"),
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.render.table import Column, Table
    from entropyfloor.render.text import console_for_tables, print_line
    from entropyfloor.screening.rescue import rescue

    if prompt_options.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled

        return say_what_is_sampled(prompt_options, sampling, loading, [checkpoint, options.base])
    console = console_for_tables()
    result = rescue(
        checkpoint,
        prompt_options.load(),
        prompt_options.reward,
        options=options,
        sampling=sampling,
        loading=loading,
        output=output,
        say=partial(print_line, console),
    )
    table = Table(
        f"{checkpoint} towards {options.base}",
        tuple(Column(name) for name in asdict(result.points[0])),
        tuple(
            tuple(f"{v:.3f}" if isinstance(v, float) else str(v) for v in asdict(point).values())
            for point in result.points
        ),
    )
    console.print(table.to_rich())
    words = (
        f"{result.share:.1%} of the base clears the floor {result.floor}; written: {result.path}"
    )
    if result.share == 0:
        words = f"nothing to rescue: the checkpoint clears the floor; a copy is at {result.path}"
    print_line(console, words)
    return 0
