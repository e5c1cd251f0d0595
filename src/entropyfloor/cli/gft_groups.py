"""``entropyfloor gft-groups TEACHER``: responses of experts and a teacher to prompts, scored."""

import argparse
from collections.abc import Sequence
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
from entropyfloor.io import save_json
from entropyfloor.render.table import Column, Table
from entropyfloor.render.terminal import console_for_tables, print_line

if TYPE_CHECKING:
    from entropyfloor.gft.response_groups import ResponseGroups


def main(argv: Sequence[str]) -> int:
    """Sample, score, write the groups, print the counts. Returns 0; errors are raised."""
    arguments = _parser().parse_args(argv)

    from entropyfloor.gft.response_groups import build_response_groups
    from entropyfloor.rollouts.processes import join_processes

    if arguments.json is not None:
        if Path(arguments.json).is_dir():
            raise ValueError(f"{arguments.json} is a directory; name the file to write")
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    prompts = chosen_prompts(arguments)
    others = None
    if arguments.other is not None:
        others = chosen_prompts(arguments, arguments.other)
    if arguments.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled
        from entropyfloor.gft.given_responses import given_responses

        given_responses(
            prompts,
            expert_column=arguments.expert_column,
            other_columns=arguments.other_columns,
            others=others,
        )
        return say_what_is_sampled(arguments, [arguments.teacher], prompts)
    processes = join_processes()
    groups = build_response_groups(
        arguments.teacher,
        prompts=prompts,
        reward=arguments.reward,
        output_dir=arguments.output_dir,
        expert_column=arguments.expert_column,
        other_columns=arguments.other_columns,
        others=others,
        num_samples=arguments.samples,
        keep_truncated=arguments.keep_truncated,
        success_threshold=arguments.success_threshold,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        engine=arguments.engine,
        progress=not arguments.no_progress,
        processes=processes,
    )
    if not processes.main:
        return 0
    if arguments.json is not None:
        save_json(Path(arguments.json), groups.to_dict())
    console = console_for_tables()
    console.print(_table(groups).to_rich())
    counts = groups.counts
    words = f"{groups.num_prompts} groups: in {counts.mixed} some responses pass and some fail, "
    words += f"in {counts.all_passed} all pass, in {counts.none_passed} none"
    if counts.without_response:
        words += f"; {counts.without_response} have no response"
    print_line(console, f"{words}.")
    print_line(console, f"Written to {groups.path}. Train on them:")
    print_line(
        console,
        f"  entropyfloor gft --model_name_or_path MODEL --groups {groups.path} "
        f"--reward {arguments.reward or 'NAME'} --output_dir runs/gft",
    )
    return 0


def _table(groups: "ResponseGroups") -> Table:
    names = ["responses", "pass rate", "mean reward"]
    names += ["duplicates", "truncated", "empty", "kept", "kept and right"]
    rows = []
    for source, counts in groups.counts.by_source.items():
        shares = (counts.pass_rate, counts.mean_reward)
        left_out = (counts.duplicates, counts.truncated, counts.empty)
        rows.append(
            (
                source,
                str(counts.responses),
                *("–" if share is None else f"{share:.3f}" for share in shares),
                *map(str, (*left_out, counts.kept)),
                str(counts.kept_passed) if counts.scored else "–",
            )
        )
    columns = (Column("source", "left"), *map(Column, names))
    return Table("responses", columns, tuple(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entropyfloor gft-groups",
        description="Build response groups for group fine-tuning: the experts' responses of a data "
        "set and a teacher's samples on its prompts, deduplicated and scored.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="model or adapter directory, or hub id")
    data = parser.add_argument_group("data")
    add_prompts(data, required=True, size=1000)
    data.add_argument(
        "--reward",
        metavar="NAME",
        help="exact_match, math, reasoning_gym, unit_tests or module:function; left to the "
        "training without",
    )
    data.add_argument(
        "--success-threshold",
        type=float,
        default=1.0,
        metavar="R",
        help="a response passes if its reward is at least this (default: %(default)s)",
    )
    data.add_argument(
        "--expert-column",
        metavar="NAME",
        help="column of the experts' responses (default: completion, if there is one)",
    )
    data.add_argument(
        "--other-columns",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns of further responses, of the source 'other'",
    )
    data.add_argument(
        "--other",
        metavar="FILE",
        help="further responses: JSONL or save_to_disk folder with prompt, completion and, if it "
        "is not 'other', source (expert, teacher, other)",
    )
    data.add_argument(
        "--output-dir",
        required=True,
        metavar="DIR",
        help="gets groups.jsonl, groups.json and the rollouts; given again after a kill, it goes "
        "on",
    )
    data.add_argument("--json", metavar="FILE", help="write counts and settings here too")
    sampling = parser.add_argument_group("the teacher's samples")
    sampling.add_argument(
        "--samples", type=int, default=3, metavar="N", help="per prompt (default: %(default)s)"
    )
    sampling.add_argument(
        "--keep-truncated",
        action="store_true",
        help="keep samples that hit --max-new-tokens; training ends them there",
    )
    add_sampling(sampling)
    add_batches(sampling)
    loading = parser.add_argument_group("loading")
    add_loading(loading)
    add_engine(loading)
    add_dry_run(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser
