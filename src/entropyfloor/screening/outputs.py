"""Files that a screening leaves behind in its output folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.rollouts import Rollout


def write_rollouts(
    folder: Path, name: str, rollouts: Sequence[Rollout], rewards: Sequence[float | None] | None
) -> None:
    """Write ``rollouts-NAME.jsonl``: one object per rollout, by prompt and sample."""
    lines: list[tuple[tuple[int, int], dict[str, Any]]] = []
    for index, rollout in enumerate(rollouts):
        record: dict[str, Any] = {
            "prompt_index": rollout.prompt_index,
            "sample_index": rollout.sample_index,
            "text": rollout.text,
            "num_tokens": len(rollout.token_ids),
            "entropy_nats": float(rollout.entropies_nats.mean(dtype=float)),
            "truncated": rollout.truncated,
        }
        if rewards is not None:
            record["reward"] = rewards[index]
        lines.append(((rollout.prompt_index, rollout.sample_index), record))
    text = "".join(
        json.dumps(record, ensure_ascii=False) + "\n"
        for _, record in sorted(lines, key=lambda line: line[0])
    )
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    (folder / f"rollouts-{safe}.jsonl").write_text(text, encoding="utf-8")


def write_report(report: ScreeningReport, folder: Path) -> None:
    """Write screening.json, screening.md and screening.png."""
    from entropyfloor.reports.screening_plot import write_screening_plot

    report.write_json(folder / "screening.json")
    (folder / "screening.md").write_text(report.to_markdown(), encoding="utf-8")
    write_screening_plot(report, folder / "screening.png")
