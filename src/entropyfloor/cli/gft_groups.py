"""``entropyfloor gft-groups TEACHER``: responses of experts and a teacher to prompts, scored."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from entropyfloor.cli.options import JSONFile, check_target, parse
from entropyfloor.gft.options import GroupOptions
from entropyfloor.io import save_json
from entropyfloor.render.table import Column, Table
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling

if TYPE_CHECKING:
    from entropyfloor.gft.response_groups import ResponseGroups


def main(argv: Sequence[str]) -> int:
    """Sample, score, write the groups, print the counts. Returns 0; errors are raised."""
    options, wanted, flags, sampling, loading, output, teacher = parse(
        argv,
        *(PromptOptions, GroupOptions, JSONFile, Sampling, Loading, Output),
        verb="gft-groups",
        description="Build response groups for group fine-tuning: the experts' responses of a data "
        "set and a teacher's samples on its prompts, deduplicated and scored. Without --reward "
        "scoring is left to the training.",
        positional=("TEACHER", "model or adapter directory, or hub id"),
        required=("prompts", "output_dir"),
        defaults={"num_samples": 3},
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.gft.response_groups import build_response_groups
    from entropyfloor.rollouts.processes import join_processes

    check_target(flags.json)
    prompts = options.load()
    if wanted.other is not None:
        wanted = replace(wanted, other=options.load(wanted.other))
    if options.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled
        from entropyfloor.gft.responses import collect_responses

        collect_responses(
            prompts,
            expert_column=wanted.expert_column,
            other_columns=wanted.other_columns,
            others=wanted.other,
        )
        return say_what_is_sampled(options, sampling, loading, [teacher])
    processes = join_processes()
    groups = build_response_groups(
        teacher,
        prompts,
        options.reward,
        groups=wanted,
        sampling=sampling,
        loading=loading,
        output=output,
        processes=processes,
    )
    if not processes.main:
        return 0
    if flags.json is not None:
        save_json(Path(flags.json), groups.to_dict())
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
        f"--reward {options.reward or 'NAME'} --output_dir runs/gft",
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
