"""The rollouts of one checkpoint on many prompts, drawn into a folder a block of prompts at a time.

What is in memory is one block, however many prompts there are:

    FOLDER/rollouts.json               what determines the rollouts; other settings are refused
    FOLDER/rollouts-NAME-00000.jsonl   the rollouts of the first 256 prompts, and so on

They do not depend on the blocks: same engine, same sampling, same seeds as in screening. A killed
run goes on from the last whole batch; more samples extend what is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from entropyfloor.rollouts.draw import Drawing, draw_rollouts, progress_bars, quiet_loading
from entropyfloor.rollouts.engines import ready_to_draw
from entropyfloor.rollouts.options import Loading, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.rollouts.rollout_store import (
    RolloutStore,
    checkpoint_digest,
    open_folder,
    what_determines,
)
from entropyfloor.rollouts.rollouts import Rollout

BLOCK = 256  # prompts whose rollouts are in memory at once


@dataclass(frozen=True)
class RolloutBlock:
    """Some prompts with all their rollouts, in order.

    ``number`` counts blocks from 0; ``rows`` are consecutive prompts of the set; ``rollouts`` and
    ``rewards`` have ``num_samples`` per prompt. A reward is None without a reward function, or
    where it does not apply.
    """

    number: int
    rows: tuple[int, ...]
    rollouts: tuple[tuple[Rollout, ...], ...]
    rewards: tuple[tuple[float | None, ...], ...]


class RolloutBlocks:
    """Checked, and its folder claimed; :meth:`draw` does the work.

    Args:
        checkpoint: one model or adapter.
        prompts: the set.
        reward: scores every batch as it is drawn; None without.
        folder: see the module's docstring; made if missing.
        sampling: how they are drawn.
        loading: how the checkpoint is loaded.
        processes: from ``join_processes()`` where several draw together.
        determines: what else must not change between runs into the folder; JSON data.

    Attributes:
        settings: what was drawn and how; plain data for JSON.
        task: the checkpoint with its tokenised prompts.

    Raises:
        ValueError: what cannot work, before the model is loaded; a folder drawn with other
            settings.
        FileNotFoundError: no such checkpoint.

    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        prompts: PromptSet,
        reward: RewardFunction | None,
        folder: Path,
        sampling: Sampling,
        loading: Loading,
        processes: Processes | None = None,
        determines: Mapping[str, Any] | None = None,
    ) -> None:
        self.processes = processes or Processes()
        ready = ready_to_draw(
            [checkpoint],
            prompts,
            reward,
            sampling=sampling,
            loading=loading,
            processes=self.processes,
        )
        if len(ready.tasks) > 1:
            names = ", ".join(task.source.name for task in ready.tasks)
            raise ValueError(
                f"one checkpoint is wanted here, and {checkpoint} holds {names}; give one"
            )
        (self.task,) = ready.tasks
        self.settings = {**ready.settings, "checkpoint": self.task.source.path}
        self._folder = folder
        self._drawing = Drawing(
            prompts=prompts,
            encoded=self.task.encoded,
            reward=reward,
            sampling=sampling,
            greedy=False,
            tau_h=None,
            processes=self.processes,
        )
        # Made when it is first asked for, for all blocks.
        self._engine = cache(
            partial(ready.engine, self.task, partial(ready.load, self.task.source))
        )
        if self.processes.main:
            open_folder(
                folder,
                determines={
                    **what_determines(sampling, prompts, reward, self.settings),
                    "checkpoint": checkpoint_digest(self.task.source),
                    "prompts per file": BLOCK,
                    **(determines or {}),
                },
                context={"settings": self.settings},
            )

    def draw(self, *, progress: bool) -> Iterator[RolloutBlock]:
        """Draw what is missing and hand out block after block, on the main process.

        The other processes draw their share and are handed nothing.
        """
        prompts = len(self._drawing.prompts)
        total = prompts * self._drawing.sampling.num_samples
        with quiet_loading(), progress_bars(enabled=progress and self.processes.main) as bars:
            bar = bars.add_task(self.task.source.name, total=total)
            for number, start in enumerate(range(0, prompts, BLOCK)):
                rows = range(start, min(start + BLOCK, prompts))
                drawing = replace(self._drawing, rows=rows)
                name = f"{self.task.source.name}-{number:05d}"
                store = RolloutStore(self._folder, name, self.processes)
                draw_rollouts(drawing, store, load=self._engine, advance=partial(bars.advance, bar))
                if not self.processes.main:
                    continue
                scored = [
                    (store.rollouts[i], store.rewards[i]) for i in drawing.chosen(store, None)
                ]
                scored.sort(key=lambda pair: (pair[0].prompt_index, pair[0].sample_index))
                groups = [
                    list(group) for _, group in groupby(scored, lambda pair: pair[0].prompt_index)
                ]
                yield RolloutBlock(
                    number=number,
                    rows=tuple(rows),
                    rollouts=tuple(tuple(rollout for rollout, _ in group) for group in groups),
                    rewards=tuple(tuple(reward for _, reward in group) for group in groups),
                )
