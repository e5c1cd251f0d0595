"""``entropyfloor screen CKPT...``: measure checkpoints before RL is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from entropyfloor.cli.options import ReportFiles, explicit_options, parse
from entropyfloor.io import write_atomic, write_pictures
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling, flag
from entropyfloor.screening.options import Judging

if TYPE_CHECKING:
    from entropyfloor.screening.report import Calibration, ScreeningReport

FLAGGED, GATE_FAILED = 3, 4
# Of --fail_on; none is never found.
_VERDICTS = ["collapsed", "at-risk", "junk", "undecided", "none"]


@dataclass(frozen=True)
class _Flags:
    """What the command alone has."""

    _argument_group_name: ClassVar[str] = "report"
    fail_on: list[str] = flag(
        ["at-risk", "collapsed", "junk"],
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


def main(argv: Sequence[str]) -> int:
    """Screen, print the table, write what was asked for.

    Returns:
        4 if a gate failed, else 3 if a checkpoint has one of --fail_on's verdicts (at risk,
        collapsed and junk, when left out), else 0; errors are raised.

    """
    options, sampling, judging, flags, files, loading, output, checkpoints = parse(
        argv,
        *(PromptOptions, Sampling, Judging, _Flags, ReportFiles, Loading, Output),
        verb="screen",
        description="Draw rollouts of each checkpoint on a prompt set and measure what "
        "group-relative RL would meet: entropy, pass@k, degenerate groups.",
        epilog="Exit code: 4 a gate failed (--min_pass_at, --min_coverage, --max_degenerate), 3 a "
        "checkpoint has a verdict of --fail_on, 0 neither, 2 usage or data error.",
        positional=(
            "CKPT",
            "model directory, PEFT adapter directory, hub id, or a trainer's output folder "
            "(all its checkpoint-*, in numeric order)",
            "*",
        ),
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.cli.dry_run import say_what_is_sampled
    from entropyfloor.rollouts.processes import join_processes
    from entropyfloor.screening.calibrate import calibrate, read_outcomes
    from entropyfloor.screening.conclude import measured_ks
    from entropyfloor.screening.screen import screen
    from entropyfloor.screening.table import (
        advice_words,
        gates_table,
        remarks,
        screening_markdown,
        screening_table,
    )

    files.check()
    pictures: dict[str | None, Any] = {}
    if files.html is not None or files.plot is not None:
        # matplotlib: a second's import, which a table does not need.
        from entropyfloor.screening.figures import write_plot
        from entropyfloor.screening.page import write_page

        pictures = {files.html: write_page, files.plot: write_plot}
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
            measured_ks(sampling.num_samples, judging, scored=scored)
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
    if report.gates:
        console.print(gates_table(report).to_rich(console.width))
    for words in advice:
        print_line(console, words, "bold")
    for remark in remarks(report):
        print_line(console, f"• {remark}")
    if calibration is not None:
        for words in _calibration_words(calibration):
            print_line(console, words)
    if files.json is not None:
        report.write_json(files.json)
    if files.markdown is not None:
        write_atomic(Path(files.markdown), screening_markdown(report))
    write_pictures(
        {Path(path): partial(write, report) for path, write in pictures.items() if path is not None}
    )
    if not all(gate.passed for gate in report.gates):
        return GATE_FAILED
    failing = {word.replace("-", " ") for word in flags.fail_on}
    return FLAGGED if any(c.verdict in failing for c in report.checkpoints) else 0


def _report_again(folder: str, told: dict[str, Any]) -> "ScreeningReport":
    """From rollouts on disk; what the flags leave out is as it was."""
    from entropyfloor.screening.from_rollouts import screen_from_rollouts

    of_drawing = sorted({"greedy", "until_decided", "held_out", "base", "trained_on"} & set(told))
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
