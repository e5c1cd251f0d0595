"""The calibration band: keep the prompts that a group can learn from, before RL is paid for.

A prompt that the policy always or never solves gives degenerate groups. The rank-inversion paper
(arXiv 2606.18487) trains on prompts of which 1 to 14 of 16 samples pass. The rollouts are those of
screening: same engine, same sampling as GRPO (T = 1), batch by batch on disk. A band into the same
folder goes on where a killed one was.

    FOLDER/rollouts.json, rollouts-*.jsonl   the rollouts, a file per 256 prompts
    FOLDER/band.jsonl                        the prompts kept, with band_passes and band_samples
    FOLDER/band.json                         passes of every prompt, settings
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.io import save_json, write_atomic
from entropyfloor.rl.options import BandOptions
from entropyfloor.rollouts.draw import RolloutBlocks
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name

NUM_SAMPLES = 16
_PAPER = (1, 14)  # passes of 16


@dataclass(frozen=True)
class Band:
    """Passes of every prompt, and which prompts are kept."""

    prompts: PromptSet  # all of them
    # How many rollouts of each passed; None where the reward did not apply
    passes: tuple[int | None, ...]
    num_samples: int  # rollouts per prompt
    lowest: int  # fewest passes that are kept
    highest: int  # most passes that are kept
    folder: Path  # where it was written

    @property
    def kept(self) -> list[int]:
        """Rows of ``prompts`` in the band."""
        return [
            row
            for row, passed in enumerate(self.passes)
            if passed is not None and self.lowest <= passed <= self.highest
        ]

    @property
    def path(self) -> Path:
        """The JSONL file of the prompts kept, for ``--dataset_name`` and ``--prompts``."""
        return self.folder / "band.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """The prompts kept, with their columns, ``band_passes`` and ``band_samples``."""
        return [
            {
                **self.prompts.rows[row],
                "band_passes": self.passes[row],
                "band_samples": self.num_samples,
            }
            for row in self.kept
        ]

    def histogram(self, width: int = 40) -> str:
        """How many prompts had how many passes, as text; the kept rows are marked."""
        counts = [self.passes.count(passed) for passed in range(self.num_samples + 1)]
        scale = width / max(1, *counts)
        lines = [f"passes of {self.num_samples}, prompts"]
        for passed, count in enumerate(counts):
            mark = "│" if self.lowest <= passed <= self.highest else " "
            bar = "█" * math.ceil(count * scale)
            lines.append(f"{passed:>6} {count:>6} {mark} {bar}".rstrip())
        lines.append(
            f"kept {len(self.kept)} of {len(self.passes)} prompts, {self.lowest} to "
            f"{self.highest} passes (│)"
        )
        if unscored := self.passes.count(None):
            lines.append(f"left out {unscored} prompts that the reward does not apply to")
        return "\n".join(lines)


def band_edges(
    num_samples: int, lowest: int | None = None, highest: int | None = None
) -> tuple[int, int]:
    """Edges of the band in passes: 1 to 14 of 16, the same shares of another number of samples.

    Raises:
        ValueError: edges outside 0 to ``num_samples``, or the wrong way round.

    """
    if num_samples < 2:
        raise ValueError(
            f"a band needs 2 samples per prompt or more, the paper's are {NUM_SAMPLES}; got "
            f"{num_samples}"
        )
    low = max(1, math.ceil(_PAPER[0] * num_samples / NUM_SAMPLES)) if lowest is None else lowest
    high = max(low, _PAPER[1] * num_samples // NUM_SAMPLES) if highest is None else highest
    if not 0 <= low <= high <= num_samples:
        raise ValueError(
            f"a band is 0 <= lowest <= highest <= {num_samples} passes; got {low} to {high}"
        )
    return low, high


def calibration_band(
    checkpoint: str | Path,
    prompts: PromptSet,
    reward: RewardFunction | str,
    *,
    band: BandOptions = BandOptions(),
    sampling: Sampling = Sampling(num_samples=NUM_SAMPLES),
    loading: Loading = Loading(),
    output: Output,
    processes: Processes | None = None,
) -> Band:
    """Sample every prompt and keep those in the band.

    Args:
        checkpoint: the model that RL will start from.
        prompts: RL's.
        reward: a function in trl's signature, or a name; RL's.
        band: which prompts are kept.
        sampling: RL's, with ``max_completion_length`` as ``max_new_tokens``.
        loading: how the checkpoint is loaded.
        output: its folder gets the rollouts while they are drawn, and the band; see the module. The
            same folder with the same settings goes on, with more samples it extends.
        processes: from ``join_processes()`` where several draw together.

    Raises:
        ValueError: something that cannot work, before the model is loaded; or, in the end, that no
            prompt is left, with the histogram of passes.
        FileNotFoundError: no such checkpoint.

    """
    low, high = band_edges(sampling.num_samples, band.lowest, band.highest)
    prompts.check_json()
    blocks = RolloutBlocks(
        checkpoint,
        prompts=prompts,
        reward=reward_by_name(reward) if isinstance(reward, str) else reward,
        folder=output.folder,
        sampling=sampling,
        loading=loading,
        processes=processes,
    )
    processes = blocks.processes
    passes: list[int | None] = []
    for block in blocks.draw(progress=output.progress):
        passes += [_passes(rewards, band.success_threshold) for rewards in block.rewards]
    passes = processes.from_main(passes)
    result = Band(prompts, tuple(passes), sampling.num_samples, low, high, output.folder)
    if processes.main:
        _write(result, {**blocks.settings, "success_threshold": band.success_threshold})
    if not result.kept:
        raise ValueError(
            f"no prompt of {prompts.source} is in the band of {checkpoint}; give easier or "
            "harder prompts, a longer max_new_tokens, or another band\n" + result.histogram()
        )
    return result


def _passes(rewards: Sequence[float | None], threshold: float) -> int | None:
    """How many rollouts of a prompt passed; None where one has no reward."""
    if any(reward is None for reward in rewards):
        return None
    return sum(float(reward or 0.0) >= threshold for reward in rewards)


def _write(band: Band, settings: dict[str, Any]) -> None:
    document = {
        "schema": "entropyfloor.band",
        "schema_version": 1,
        "settings": settings,
        "lowest": band.lowest,
        "highest": band.highest,
        "prompts": {"source": band.prompts.source, "digest": band.prompts.digest},
        "passes": list(band.passes),
        "kept": len(band.kept),
    }
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in band.rows()]
    write_atomic(band.path, "".join(lines))
    save_json(band.folder / "band.json", document)
