"""``entropyfloor screen CKPT...``: measure checkpoints before RL is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from entropyfloor.cli.options import explicit_options, parse
from entropyfloor.io import write_atomic, write_pictures
from entropyfloor.render.terminal import console_for_tables, print_line
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling, flag
from entropyfloor.screening.options import Judging

if TYPE_CHECKING:
    from entropyfloor.screening.records import Calibration
    from entropyfloor.screening.report import ScreeningReport

FLAGGED = 3
_VERDICTS = ["collapsed", "at-risk", "undecided", "none"]  # of --fail_on; none is never found


@dataclass(frozen=True)
class _Flags:
    """What the command alone has."""

    _argument_group_name: ClassVar[str] = "report"
    fail_on: list[str] = flag(
        ["at-risk", "collapsed"],
        f"verdicts that make the exit code 3, of {', '.join(_VERDICTS)}",
        choices=_VERDICTS,
        metavar="VERDICT",
    )
    calibrate: str | None = flag(
        None,
        "columns checkpoint and score (after RL): correlate predictors with it and fit tau_h; "
        "without CKPT it needs a column entropy_nats too",
        metavar="CSV",
    )
    from_rollouts: str | None = flag(
        None, "report again from an earlier --output_dir, without a model", metavar="DIR"
    )
    json: str | None = flag(None, "write the report as JSON", metavar="FILE")
    markdown: str | None = flag(None, "write the table as Markdown", metavar="FILE")
    html: str | None = flag(None, "write one self-contained HTML page", metavar="FILE")
    plot: str | None = flag(None, "write the plot as PNG", metavar="FILE")


def main(argv: Sequence[str]) -> int:
    """Screen, print the table, write what was asked for.

    Returns:
        3 if a checkpoint has one of --fail_on's verdicts (at risk and collapsed, when left out),
        else 0; errors are raised.

    """
    options, sampling, judging, flags, loading, output, checkpoints = parse(
        argv,
        *(PromptOptions, Sampling, Judging, _Flags, Loading, Output),
        verb="screen",
        description="Draw rollouts of each checkpoint on a prompt set and measure what "
        "group-relative RL would meet: entropy, pass@k, degenerate groups.",
        epilog="Exit code: 3 a checkpoint has a verdict of --fail_on (default: at risk or "
        "collapsed), 0 none has, 2 usage or data error.",
        positional={
            "dest": "checkpoints",
            "nargs": "*",
            "metavar": "CKPT",
            "help": "model directory, PEFT adapter directory, hub id, or a trainer's output folder "
            "(all its checkpoint-*, in numeric order)",
        },
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.cli.dry_run import say_what_is_sampled
    from entropyfloor.rollouts.preparation import check_samples
    from entropyfloor.rollouts.processes import join_processes
    from entropyfloor.screening.calibrate import calibrate, read_outcomes
    from entropyfloor.screening.screen import screen
    from entropyfloor.screening.table import (
        advice_words,
        remarks,
        screening_markdown,
        screening_table,
    )

    for target in (flags.json, flags.plot, flags.markdown, flags.html):
        if target is not None:
            _check_target(target)
    pictures: dict[str | None, Any] = {}
    if flags.html is not None or flags.plot is not None:
        # matplotlib: a second's import, which a table does not need.
        from entropyfloor.render.figure import check_suffix
        from entropyfloor.screening.figures import write_plot
        from entropyfloor.screening.page import write_page

        if flags.plot is not None:
            check_suffix(flags.plot)
        pictures = {flags.html: write_page, flags.plot: write_plot}
    outcomes = None if flags.calibrate is None else read_outcomes(flags.calibrate)
    processes = join_processes()
    report = None
    if flags.from_rollouts is not None:
        if checkpoints or options.prompts or options.dry_run:
            raise ValueError(
                "--from_rollouts needs no model: give neither CKPT nor --prompts nor --dry_run"
            )
        report = _report_again(flags.from_rollouts, explicit_options(argv, Judging))
    elif checkpoints or options.prompts or options.dry_run or outcomes is None:
        if not (checkpoints and options.prompts):
            raise ValueError("give checkpoints and --prompts, or --from_rollouts DIR; see --help")
        if isinstance(judging.held_out, str):
            judging = replace(judging, held_out=options.load(judging.held_out))
        if options.dry_run:
            scored = options.reward is not None
            check_samples(sampling.num_samples, judging.group_size, judging.ks, scored=scored)
            held_out = judging.held_out
            return say_what_is_sampled(options, sampling, loading, checkpoints, held_out)
        report = screen(
            checkpoints,
            options.load(),
            options.reward,
            sampling=sampling,
            judging=judging,
            loading=loading,
            output=output,
            processes=processes,
        )
    if not processes.main:
        return 0  # the main process writes, prints, and says by its code what it found
    console = console_for_tables()
    calibration = None if outcomes is None else calibrate(outcomes, report)
    if report is None:
        assert calibration is not None
        for words in _calibration_words(calibration):
            print_line(console, words)
        return 0
    advice = advice_words(report)
    report = replace(report, calibration=calibration)
    console.print(screening_table(report).to_rich(console.width))
    for words in advice:
        print_line(console, words, "bold")
    for remark in remarks(report):
        print_line(console, f"• {remark}")
    if calibration is not None:
        for words in _calibration_words(calibration):
            print_line(console, words)
    if flags.json is not None:
        report.write_json(flags.json)
    if flags.markdown is not None:
        write_atomic(Path(flags.markdown), screening_markdown(report))
    write_pictures(
        {Path(path): partial(write, report) for path, write in pictures.items() if path is not None}
    )
    failing = {word.replace("-", " ") for word in flags.fail_on}
    return FLAGGED if any(c.verdict in failing for c in report.checkpoints) else 0


def _report_again(folder: str, told: dict[str, Any]) -> "ScreeningReport":
    """From rollouts on disk; what the flags leave out is as it was."""
    from entropyfloor.screening.from_rollouts import screen_from_rollouts

    of_drawing = sorted({"greedy", "until_decided", "held_out", "base"} & set(told))
    if of_drawing:
        raise ValueError(
            f"--from_rollouts draws nothing: --{' and --'.join(of_drawing)} would have no effect; "
            "leave it out"
        )
    return screen_from_rollouts(folder, **told)


def _calibration_words(calibration: "Calibration") -> list[str]:
    lines = [f"calibration on {calibration.num_checkpoints} checkpoints: {calibration.message}"]
    lines += [
        f"  {c.predictor}: Spearman {c.spearman:+.2f}, p = {c.p_value:.3g} ({c.method}, "
        f"{c.num_checkpoints} checkpoints)"
        for c in calibration.correlations
    ]
    return lines


def _check_target(target: str) -> None:
    path = Path(target)
    if path.is_dir():
        raise ValueError(f"{target} is a directory; name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
