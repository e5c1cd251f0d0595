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
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from entropyfloor.models.checkpoints import (
    dtype_record,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
)
from entropyfloor.screening.draw import Drawing, draw_rollouts
from entropyfloor.screening.engines import choose_engine
from entropyfloor.screening.preparation import prepare
from entropyfloor.screening.processes import Processes
from entropyfloor.screening.progress import progress_bars, quiet_loading
from entropyfloor.screening.prompts import PromptSet
from entropyfloor.screening.reference import Lazily
from entropyfloor.screening.rewards import (
    RewardFunction,
    check_reward_columns,
    reward_by_name,
    reward_name,
)
from entropyfloor.screening.rollout_store import (
    RolloutStore,
    checkpoint_digest,
    open_folder,
    source_digest,
)
from entropyfloor.screening.rollouts import SamplingSettings
from entropyfloor.screening.screen import ready_engine

NUM_SAMPLES = 16
_PAPER = (1, 14)  # passes of 16
_BLOCK = 256  # prompts whose rollouts are in memory at once


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


@dataclass(frozen=True)
class _Block(Drawing):
    """Some prompts of the set, by their rows in it: rollouts do not depend on the blocks."""

    block: tuple[int, ...] = ()

    def looks(self) -> list[list[int]]:
        return [list(self.block)]


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
        engine: see ``entropyfloor.screening.engines``.
        progress: show a progress bar on standard error.
        processes: from ``join_processes()`` where several draw together.

    Raises:
        ValueError: something that cannot work, before the model is loaded; or, in the end, that no
            prompt is left, with the histogram of passes.
        FileNotFoundError: no such checkpoint.

    """
    low, high = band_edges(num_samples, lowest, highest)
    sampling = SamplingSettings(max_new_tokens, temperature, top_p, top_k, batch_size, seed)
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    check_reward_columns(function, prompts)
    resolve_dtype(dtype)
    processes = processes or Processes()
    resolved = processes.own(resolve_device(device))
    tasks = prepare(
        [checkpoint],
        prompts,
        None,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    if len(tasks) > 1:
        names = ", ".join(task.source.name for task in tasks)
        raise ValueError(f"RL starts from one checkpoint, and {checkpoint} holds {names}; give one")
    task = tasks[0]
    chosen = choose_engine(engine, sources=[task.source], device=resolved, processes=processes)
    folder = Path(output_dir)
    settings = {
        **asdict(sampling),
        "reward": reward_name(reward),
        "checkpoint": task.source.given,
        "num_samples": num_samples,
        "success_threshold": success_threshold,
        "dtype": dtype_record(dtype, resolved),
        "device": resolved.type,
        "engine": chosen,
    }
    if processes.main:
        open_folder(
            folder,
            determines={
                **{k: v for k, v in asdict(sampling).items() if k != "batch_size"},
                "prompts and columns": prompts.full_digest,
                "reward": settings["reward"],
                "reward's source file": source_digest(function),
                "dtype": settings["dtype"],
                "device": settings["device"],
                "engine": chosen,
                "checkpoint": checkpoint_digest(task.source),
                "prompts per file": _BLOCK,
            },
            context={"settings": settings},
        )
    load = Lazily(
        partial(
            load_checkpoint,
            task.source,
            dtype=dtype,
            device=resolved,
            trust_remote_code=trust_remote_code,
        )
    )
    passes: list[int | None] = []
    with quiet_loading(), progress_bars(enabled=progress and processes.main) as bars:
        bar = bars.add_task(task.source.name, total=len(prompts) * num_samples)
        ready = _Once(
            partial(
                ready_engine,
                chosen,
                task,
                load,
                max_new_tokens=max_new_tokens,
                trust_remote_code=trust_remote_code,
            )
        )
        for start in range(0, len(prompts), _BLOCK):
            block = _Block(
                prompts=prompts,
                encoded=task.encoded,
                reward=function,
                sampling=sampling,
                num_samples=num_samples,
                greedy=False,
                tau_h=None,
                processes=processes,
                block=tuple(range(start, min(start + _BLOCK, len(prompts)))),
            )
            store = RolloutStore(folder, f"{task.source.name}-{start // _BLOCK:05d}", processes)
            draw_rollouts(block, store, load=ready, advance=partial(bars.advance, bar))
            if processes.main:
                passes += _passes(block, store, success_threshold)
    band = Band(prompts, tuple(processes.from_main(passes)), num_samples, low, high, folder)
    if processes.main:
        _write(band, settings)
    if not band.kept:
        raise ValueError(
            f"no prompt of {prompts.source} is in the band of {task.source.given}; give easier or "
            "harder prompts, a longer max_new_tokens, or another band\n" + band.histogram()
        )
    return band


class _Once:
    """Makes the engine when it is first asked for, for all blocks."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def _passes(block: _Block, store: RolloutStore, threshold: float) -> Sequence[int | None]:
    """Passes of each prompt of a block, in order; None where a rollout has no reward."""
    found: dict[int, list[float | None]] = {row: [] for row in block.block}
    for index in block.chosen(store, None):
        found[store.rollouts[index].prompt_index].append(store.rewards[index])
    return [
        None
        if any(r is None for r in rewards)
        else sum(float(r or 0.0) >= threshold for r in rewards)
        for rewards in found.values()
    ]


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
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in band.rows()]
    for name, text in (
        ("band.jsonl", "".join(lines)),
        ("band.json", json.dumps(document, ensure_ascii=False, indent=1) + "\n"),
    ):
        unfinished = band.folder / f".unfinished-{name}"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, band.folder / name)
