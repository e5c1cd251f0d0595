"""``entropyfloor overlap ROWS PROMPTS``: which prompts are among the rows of training data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from entropyfloor.cli.options import check_target, parse
from entropyfloor.io import save_json, write_atomic
from entropyfloor.render.table import Column, Table
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rollouts.options import flag

OVER_LIMIT = 4
_SHOWN = 10


@dataclass(frozen=True)
class _Flags:
    """What the command has."""

    ngram: int = flag(3, "words of an n-gram")
    threshold: float = flag(0.8, "share of a prompt's n-grams in a row's text that makes it near")
    near: bool = flag(True, "near matches too, by MinHash, beside exact and normalised ones")
    max_overlap: float | None = flag(
        None, "gate: exit code 4 if a larger share of the prompts overlaps", metavar="SHARE"
    )
    json: str | None = flag(None, "write all matches as JSON", metavar="FILE")
    clean: str | None = flag(
        None, "write the prompts' rows that do not overlap as JSON Lines", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if self.max_overlap is not None and not 0.0 <= self.max_overlap <= 1.0:
            raise ValueError(f"--max_overlap is a share between 0 and 1; got {self.max_overlap}")


def main(argv: Sequence[str]) -> int:
    """Compare, print. Returns 4 beyond --max_overlap, else 0; errors are raised."""
    flags, words = parse(
        argv,
        _Flags,
        verb="overlap",
        description="Find the prompts of RL or of a screening that are among the rows of SFT data: "
        "the same text, the same after normalising, and near ones by their n-grams. Rows stream "
        "by; the prompts are held in memory.",
        epilog="Exit code: 4 more than --max_overlap of the prompts overlap, 0 they do not, 2 "
        "usage or data error.",
        positional=(
            "ROWS PROMPTS",
            "JSONL files, folders written by save_to_disk, or reasoning_gym:TASK; the "
            "larger one first",
            2,
        ),
    )
    from entropyfloor.rollouts.overlap import LEVELS, find_overlap
    from entropyfloor.rollouts.prompts import load_prompts, stream_rows

    for target in (flags.json, flags.clean):
        check_target(target)
    rows, prompts = words[0], load_prompts(words[1])
    if flags.clean is not None:
        prompts.check_json()
    overlap = find_overlap(
        lambda: stream_rows(rows),
        prompts.user_texts,
        ngram=flags.ngram,
        threshold=flags.threshold,
        near=flags.near,
    )
    console = console_for_tables()
    print_line(console, f"{words[1]} in {rows}: {overlap.words()}", "bold")
    closest = sorted(overlap.matches, key=lambda m: (LEVELS.index(m.level), -m.containment))
    if closest:
        columns = (
            *(Column("prompt"), Column("row"), Column("match", "left")),
            *(Column("of its n-grams"), Column("prompt's text", "left")),
        )
        shown = tuple(
            (f"{m.prompt_index}", f"{m.row_index}", m.level, f"{m.containment:.2f}", m.prompt)
            for m in closest[:_SHOWN]
        )
        left = len(closest) - len(shown)
        note = f"{left} more; --json FILE has all of them" if left else ""
        console.print(Table("Closest matches", columns, shown, note).to_rich(console.width))
    if flags.json is not None:
        save_json(Path(flags.json), {"rows": rows, "prompts": words[1], **overlap.to_dict()})
    if flags.clean is not None:
        dirty = {match.prompt_index for match in overlap.matches}
        kept = [dict(row) for i, row in enumerate(prompts.rows) if i not in dirty]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_atomic(Path(flags.clean), "".join(lines))
        print_line(console, f"{len(kept)} prompts without overlap are in {flags.clean}")
    over = flags.max_overlap is not None and overlap.share > flags.max_overlap
    return OVER_LIMIT if over else 0
