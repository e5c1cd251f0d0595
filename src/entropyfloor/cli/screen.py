"""``entropyfloor screen CKPT...``: measure checkpoints before RL is paid for."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from entropyfloor.cli.options import (
    add_batches,
    add_dry_run,
    add_engine,
    add_loading,
    add_prompts,
    add_sampling,
    chosen_prompts,
)
from entropyfloor.io import write_atomic
from entropyfloor.render.terminal import console_for_tables, print_line
from entropyfloor.screening.verdict import AT_RISK, COLLAPSED, TAU_H, UNDECIDED

if TYPE_CHECKING:
    from entropyfloor.rollouts.processes import Processes
    from entropyfloor.rollouts.prompts import PromptSet
    from entropyfloor.screening.records import Calibration
    from entropyfloor.screening.report import ScreeningReport

FLAGGED = 3
# How --fail-on spells verdicts; "none" is never found.
_FAIL_ON = {"collapsed": COLLAPSED, "at-risk": AT_RISK, "undecided": UNDECIDED, "none": "none"}


def main(argv: Sequence[str]) -> int:
    """Screen, print the table, write what was asked for.

    Returns:
        3 if a checkpoint has one of --fail-on's verdicts (at risk and collapsed, when left out),
        else 0; errors are raised.

    """
    arguments = _parser().parse_args(argv)

    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.io import write_pictures
    from entropyfloor.render.figure import check_suffix
    from entropyfloor.rollouts.processes import join_processes
    from entropyfloor.screening.calibrate import calibrate, read_outcomes
    from entropyfloor.screening.figures import write_plot
    from entropyfloor.screening.page import write_page
    from entropyfloor.screening.table import (
        advice_words,
        remarks,
        screening_markdown,
        screening_table,
    )

    for target in (arguments.json, arguments.plot, arguments.markdown, arguments.html):
        if target is not None:
            _check_target(target)
    if arguments.plot is not None:
        check_suffix(arguments.plot)
    outcomes = None if arguments.calibrate is None else read_outcomes(arguments.calibrate)
    if arguments.dry_run:
        return _dry_run(arguments)
    processes = join_processes()
    report = _report(arguments, processes, outcomes_alone=outcomes is not None)
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
    if arguments.json is not None:
        report.write_json(arguments.json)
    if arguments.markdown is not None:
        write_atomic(Path(arguments.markdown), screening_markdown(report))
    pictures = {arguments.html: write_page, arguments.plot: write_plot}
    write_pictures(
        {Path(path): partial(write, report) for path, write in pictures.items() if path is not None}
    )
    failing = {_FAIL_ON[word] for word in arguments.fail_on}
    return FLAGGED if any(c.verdict in failing for c in report.checkpoints) else 0


def _report(
    arguments: argparse.Namespace, processes: "Processes", *, outcomes_alone: bool
) -> "ScreeningReport | None":
    """Screen, or read rollouts; None where outcomes bring their own measures."""
    from entropyfloor.screening.from_rollouts import screen_from_rollouts
    from entropyfloor.screening.screen import screen

    if arguments.from_rollouts is not None:
        if arguments.checkpoints or arguments.prompts:
            raise ValueError("--from-rollouts needs no model: give neither CKPT nor --prompts")
        return screen_from_rollouts(
            arguments.from_rollouts,
            tau_h=arguments.tau_h,
            group_size=arguments.group_size,
            ks=arguments.k,
            success_threshold=arguments.success_threshold,
        )
    if not arguments.checkpoints and outcomes_alone:
        return None
    if not arguments.checkpoints or arguments.prompts is None:
        raise ValueError("give checkpoints and --prompts, or --from-rollouts DIR; see --help")
    prompts = chosen_prompts(arguments)
    return screen(
        arguments.checkpoints,
        prompts=prompts,
        reward=arguments.reward,
        num_samples=arguments.samples,
        group_size=8 if arguments.group_size is None else arguments.group_size,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        tau_h=TAU_H if arguments.tau_h is None else arguments.tau_h,
        ks=arguments.k,
        success_threshold=(
            1.0 if arguments.success_threshold is None else arguments.success_threshold
        ),
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        greedy=not arguments.no_greedy,
        until_decided=arguments.until_decided,
        held_out=_held_out(arguments),
        base=arguments.base,
        output_dir=arguments.output_dir,
        progress=not arguments.no_progress,
        engine=arguments.engine,
        processes=processes,
    )


def _held_out(arguments: argparse.Namespace) -> "PromptSet | None":
    return None if arguments.held_out is None else chosen_prompts(arguments, arguments.held_out)


def _dry_run(arguments: argparse.Namespace) -> int:
    """Print what would be screened, after the checks that need no weights."""
    from entropyfloor.cli.dry_run import say_what_is_sampled
    from entropyfloor.screening.preparation import check_samples

    if not arguments.checkpoints or arguments.prompts is None:
        raise ValueError("--dry-run is about checkpoints and --prompts; give both")
    size = 8 if arguments.group_size is None else arguments.group_size
    check_samples(arguments.samples, size, arguments.k, scored=arguments.reward is not None)
    return say_what_is_sampled(
        arguments,
        arguments.checkpoints,
        chosen_prompts(arguments),
        held_out=_held_out(arguments),
    )


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor screen",
        description="Draw rollouts of each checkpoint on a prompt set and measure what "
        "group-relative RL would meet: entropy, pass@k, degenerate groups.",
        epilog="Exit code: 3 a checkpoint has a verdict of --fail-on (default: at risk or "
        "collapsed), 0 none has, 2 usage or data error.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CKPT",
        help="model directory, PEFT adapter directory, hub id, or a trainer's output folder "
        "(all its checkpoint-*, in numeric order)",
    )
    data = parser.add_argument_group("prompts and reward")
    add_prompts(data, required=False)
    data.add_argument(
        "--reward",
        metavar="NAME",
        help="exact_match, math, reasoning_gym, unit_tests or module:function; without one only "
        "entropy is judged",
    )
    data.add_argument(
        "--success-threshold",
        type=float,
        metavar="R",
        help="a rollout passes if its reward is at least this (default: 1.0)",
    )
    data.add_argument(
        "--held-out",
        metavar="SPEC",
        help="rows with prompt and completion, for the held-out loss (default: the prompts, if "
        "all have a completion)",
    )
    data.add_argument(
        "--base",
        metavar="CKPT",
        help="measure the KL to this model, on rollouts and held-out completions",
    )
    sampling = parser.add_argument_group("rollouts (defaults are what GRPO samples with)")
    sampling.add_argument(
        "--samples", type=int, default=8, metavar="N", help="rollouts per prompt (default: 8)"
    )
    sampling.add_argument(
        "--group-size",
        type=int,
        metavar="G",
        help="rollouts per prompt that RL will use (default: 8)",
    )
    add_sampling(sampling)
    sampling.add_argument(
        "--no-greedy", action="store_true", help="no greedy rollout per prompt (greedy pass@1)"
    )
    add_batches(sampling)
    judging = parser.add_argument_group("verdict")
    judging.add_argument(
        "--tau-h",
        type=float,
        metavar="NATS",
        help=f"mean entropies below this are low (default: {TAU_H})",
    )
    judging.add_argument(
        "--k", type=int, nargs="+", metavar="K", help="pass@k to report (default: 1 2 4 ... N)"
    )
    judging.add_argument(
        "--fail-on",
        nargs="+",
        choices=list(_FAIL_ON),
        default=["at-risk", "collapsed"],
        metavar="VERDICT",
        help="verdicts that make the exit code 3: collapsed, at-risk, undecided, none "
        "(default: at-risk collapsed)",
    )
    judging.add_argument(
        "--until-decided",
        action="store_true",
        help="stop drawing from a checkpoint once its entropy is decided to lie above or below "
        "tau_H",
    )
    judging.add_argument(
        "--calibrate",
        metavar="CSV",
        help="columns checkpoint and score (after RL): correlate predictors with it and fit tau_H; "
        "without CKPT it needs a column entropy_nats too",
    )
    judging.add_argument(
        "--from-rollouts",
        metavar="DIR",
        help="report again from an earlier --output-dir, without a model",
    )
    loading = parser.add_argument_group("loading")
    add_loading(loading)
    add_engine(loading)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the report as JSON")
    output.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")
    output.add_argument("--html", metavar="FILE", help="write one self-contained HTML page")
    output.add_argument("--plot", metavar="FILE", help="write the plot as PNG")
    output.add_argument(
        "--output-dir",
        metavar="DIR",
        help="write screening.json, .md, .html, .png and the rollouts there; given again after a "
        "kill, it goes on where it was",
    )
    add_dry_run(output)
    output.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
