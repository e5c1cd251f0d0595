"""``entropyfloor compare A B``: two screened checkpoints, prompt by prompt."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropyfloor.cli.options import ReportFiles, parse
from entropyfloor.io import save_json, write_atomic, write_pictures
from entropyfloor.render.text import console_for_tables, print_line

if TYPE_CHECKING:
    from entropyfloor.screening.report import CheckpointScreening, ScreeningReport

SCHEMA, SCHEMA_VERSION = "entropyfloor.comparison", 1


def main(argv: Sequence[str]) -> int:
    """Compare, print, write what was asked for. Returns 0; errors are raised."""
    files, words = parse(
        argv,
        ReportFiles,
        verb="compare",
        description="Compare two checkpoints that `screen --output_dir` screened on the same "
        "prompts: differences with intervals that resample the prompts of both together, a band of "
        "pass@k that holds for all k at once, and the prompts that one of them lost.",
        epilog="A folder with several checkpoints: name one, DIR:CHECKPOINT, or give that folder "
        "alone, and its first checkpoint is compared with each of the others.",
        positional=("DIR[:CHECKPOINT]", "one or two folders that `screen` wrote", "+"),
    )
    if len(words) > 2:
        raise ValueError(f"compare takes one or two folders; got {len(words)}: {' '.join(words)}")
    files.check()
    # Imported late: --help and usage errors do not wait for scipy.
    from entropyfloor.io import plain
    from entropyfloor.screening.conclude import compare_screenings
    from entropyfloor.screening.paired_table import paired_markdown, paired_table

    (report, first, texts), others = _sides(words)
    pairs = [compare_screenings((report, first), other, texts) for other in others]
    console = console_for_tables()
    for pair in pairs:
        console.print(paired_table(pair).to_rich(console.width))
        for sentence in (pair.message, *pair.notes):
            print_line(console, sentence)
    if files.json is not None:
        document: dict[str, Any] = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION}
        document |= {"settings": report.settings, "comparisons": [asdict(p) for p in pairs]}
        save_json(Path(files.json), plain(document))
    if files.markdown is not None:
        write_atomic(Path(files.markdown), paired_markdown(pairs))
    if files.html is not None or files.plot is not None:
        from entropyfloor.screening.paired_page import write_paired_page, write_paired_plot

        writers = {
            files.html: partial(write_paired_page, pairs, report.settings),
            files.plot: partial(write_paired_plot, pairs[0]),
        }
        write_pictures({Path(p): write for p, write in writers.items() if p is not None})
    return 0


def _sides(
    words: Sequence[str],
) -> tuple[
    tuple["ScreeningReport", "CheckpointScreening", list[str]],
    list[tuple["ScreeningReport", "CheckpointScreening"]],
]:
    """The checkpoint that is compared with, and the others."""
    sides = [_screening(word) for word in words]
    if len(words) == 1:
        (report, checkpoints, texts) = sides[0]
        if len(checkpoints) < 2:
            raise ValueError(
                f"{words[0]} is one checkpoint; give two folders, or one with several checkpoints"
            )
        return (report, checkpoints[0], texts), [(report, c) for c in checkpoints[1:]]
    for word, (_, checkpoints, _) in zip(words, sides, strict=True):
        if len(checkpoints) > 1:
            names = ", ".join(c.name for c in checkpoints)
            raise ValueError(
                f"{word} holds {names}: say which, such as {word}:{checkpoints[0].name}"
            )
    (report, (first,), texts), (other_report, (second,), _) = sides
    if first.name == second.name:  # checkpoint-400 of two runs
        first, second = (replace(c, name=w) for c, w in zip((first, second), words, strict=True))
    return (report, first, texts), [(other_report, second)]


def _screening(
    word: str,
) -> tuple["ScreeningReport", Sequence["CheckpointScreening"], list[str]]:
    """A folder's report, the checkpoints of it that the word means, and its prompts' texts."""
    from entropyfloor.screening.conclude import name_of
    from entropyfloor.screening.from_rollouts import read_screening

    folder, _, name = (word, "", "") if Path(word).is_dir() else word.rpartition(":")
    report, texts = read_screening(folder or word)
    if not name:
        return report, report.checkpoints, texts
    chosen = name_of(name, [(c.name, c.path) for c in report.checkpoints])
    return report, [c for c in report.checkpoints if c.name == chosen], texts
