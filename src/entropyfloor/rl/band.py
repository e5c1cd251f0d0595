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

import torch

from entropyfloor.io import save_json, write_atomic
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name
from entropyfloor.rollouts.rollout_blocks import RolloutBlocks
from entropyfloor.rollouts.rollouts import SamplingSettings
from entropyfloor.stats.groups import check_success_threshold

NUM_SAMPLES = 16
_PAPER = (1, 14)  # passes of 16


@dataclass(frozen=True)
class Band:
    """Passes of every prompt, and which prompts are kept.

    Attributes:
        prompts: all of them.
        passes: how many rollouts of each passed; None where the reward did not apply.
        num_samples: rollouts per prompt.
        lowest: fewest passes that are kept.
        highest: most passes that are kept.
        folder: where it was written.

    """

    prompts: PromptSet
    passes: tuple[int | None, ...]
    num_samples: int
    lowest: int
    highest: int
    folder: Path

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
    *,
    prompts: PromptSet,
    reward: RewardFunction | str,
    output_dir: str | Path,
    num_samples: int = NUM_SAMPLES,
    lowest: int | None = None,
    highest: int | None = None,
    success_threshold: float = 1.0,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    engine: str = "transformers",
    progress: bool = True,
    processes: Processes | None = None,
) -> Band:
    """Sample every prompt and keep those in the band.

    Args:
        checkpoint: the model that RL will start from.
        prompts: RL's.
        reward: a function in trl's signature, or a name; RL's.
        output_dir: gets the rollouts while they are drawn, and the band; see the module. The same
            folder with the same settings goes on, with more samples it extends.
        num_samples: rollouts per prompt.
        lowest: fewest passes to keep; the paper's share when left out.
        highest: most passes to keep.
        success_threshold: a rollout passes if its reward is at least this.
        max_new_tokens: length limit, RL's ``max_completion_length``.
        temperature: of sampling, RL's.
        top_p: nucleus of sampling; 1 is off.
        top_k: most probable tokens to sample from; 0 is off.
        batch_size: rollouts generated at once; does not change them.
        seed: of the rollouts.
        dtype: see ``entropyfloor.screening.screen``.
        device: CUDA if there is one, else CPU, when left out.
        trust_remote_code: run model code that travels with the checkpoint.
        engine: see ``entropyfloor.rollouts.engines``.
        progress: show a progress bar on standard error.
        processes: from ``join_processes()`` where several draw together.

    Raises:
        ValueError: something that cannot work, before the model is loaded; or, in the end, that no
            prompt is left, with the histogram of passes.
        FileNotFoundError: no such checkpoint.

    """
    low, high = band_edges(num_samples, lowest, highest)
    check_success_threshold(success_threshold)
    prompts.check_json()
    sampling = SamplingSettings(max_new_tokens, temperature, top_p, top_k, batch_size, seed)
    blocks = RolloutBlocks(
        checkpoint,
        prompts=prompts,
        reward=reward_by_name(reward) if isinstance(reward, str) else reward,
        folder=Path(output_dir),
        num_samples=num_samples,
        sampling=sampling,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        engine=engine,
        processes=processes,
    )
    processes = blocks.processes
    passes: list[int | None] = []
    for block in blocks.draw(progress=progress):
        passes += [_passes(rewards, success_threshold) for rewards in block.rewards]
    passes = processes.from_main(passes)
    band = Band(prompts, tuple(passes), num_samples, low, high, Path(output_dir))
    if processes.main:
        _write(band, {**blocks.settings, "success_threshold": success_threshold})
    if not band.kept:
        raise ValueError(
            f"no prompt of {prompts.source} is in the band of {checkpoint}; give easier or "
            "harder prompts, a longer max_new_tokens, or another band\n" + band.histogram()
        )
    return band


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
