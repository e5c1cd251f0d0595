"""The rollouts of one checkpoint on many prompts, drawn into a folder a block of prompts at a time.

What is in memory is one block, however many prompts there are:

    FOLDER/rollouts.json               what determines the rollouts; other settings are refused
    FOLDER/rollouts-NAME-00000.jsonl   the rollouts of the first 256 prompts, and so on

They do not depend on the blocks: same engine, same sampling, same seeds as in screening. A killed
run goes on from the last whole batch; more samples extend what is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from entropyfloor.models.checkpoints import (
    dtype_record,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
)
from entropyfloor.rollouts.draw import Drawing, draw_rollouts
from entropyfloor.rollouts.engines import choose_engine, ready_engine
from entropyfloor.rollouts.options import Loading, Sampling
from entropyfloor.rollouts.preparation import Task, prepare
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.progress import progress_bars, quiet_loading
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.references import check_references
from entropyfloor.rollouts.rewards import RewardFunction, reward_name
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

    Attributes:
        number: of the block, from 0.
        rows: prompts of the set, consecutive.
        rollouts: per prompt, ``num_samples`` of them.
        rewards: per prompt and rollout; None without a reward, or where it does not apply.

    """

    number: int
    rows: tuple[int, ...]
    rollouts: tuple[tuple[Rollout, ...], ...]
    rewards: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class _Rows(Drawing):
    """Some prompts of the set, all of their rollouts at once."""

    rows: tuple[int, ...] = ()

    def looks(self) -> list[list[int]]:
        return [list(self.rows)]


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
        ValueError: something that cannot work, before the model is loaded; several checkpoints; a
            folder drawn with other settings.
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
        if reward is not None:
            check_references(reward, prompts)
        resolve_dtype(loading.dtype)
        self.processes = processes or Processes()
        resolved = self.processes.local_device(resolve_device(loading.device))
        self.task = _one(checkpoint, prompts, sampling, loading.trust_remote_code)
        chosen = choose_engine(
            sampling.engine, sources=[self.task.source], device=resolved, processes=self.processes
        )
        self.settings: dict[str, Any] = {
            **asdict(sampling),
            "reward": None if reward is None else reward_name(reward),
            "checkpoint": self.task.source.path,
            "dtype": dtype_record(loading.dtype, resolved),
            "device": resolved.type,
            "engine": chosen,
        }
        self._prompts, self._reward, self._sampling = prompts, reward, sampling
        self._folder = folder
        load = partial(
            load_checkpoint,
            self.task.source,
            dtype=loading.dtype,
            device=resolved,
            trust_remote_code=loading.trust_remote_code,
        )
        self._engine = cache(  # made when it is first asked for, for all blocks
            partial(
                ready_engine,
                chosen,
                self.task,
                load,
                max_new_tokens=sampling.max_new_tokens,
                trust_remote_code=loading.trust_remote_code,
            )
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
        total = len(self._prompts) * self._sampling.num_samples
        with quiet_loading(), progress_bars(enabled=progress and self.processes.main) as bars:
            bar = bars.add_task(self.task.source.name, total=total)
            for number, start in enumerate(range(0, len(self._prompts), BLOCK)):
                drawing = _Rows(
                    prompts=self._prompts,
                    encoded=self.task.encoded,
                    reward=self._reward,
                    sampling=self._sampling,
                    greedy=False,
                    tau_h=None,
                    processes=self.processes,
                    rows=tuple(range(start, min(start + BLOCK, len(self._prompts)))),
                )
                name = f"{self.task.source.name}-{number:05d}"
                store = RolloutStore(self._folder, name, self.processes)
                draw_rollouts(drawing, store, load=self._engine, advance=partial(bars.advance, bar))
                if self.processes.main:
                    yield _block(number, drawing, store)


def _one(
    checkpoint: str | Path, prompts: PromptSet, sampling: Sampling, trust_remote_code: bool
) -> Task:
    tasks = prepare(
        [checkpoint],
        prompts,
        None,
        max_new_tokens=sampling.max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    if len(tasks) > 1:
        names = ", ".join(task.source.name for task in tasks)
        raise ValueError(f"one checkpoint is wanted here, and {checkpoint} holds {names}; give one")
    return tasks[0]


def _block(number: int, drawing: _Rows, store: RolloutStore) -> RolloutBlock:
    by_prompt: dict[int, list[tuple[int, Rollout, float | None]]] = {
        row: [] for row in drawing.rows
    }
    for index in drawing.chosen(store, None):
        rollout = store.rollouts[index]
        by_prompt[rollout.prompt_index].append(
            (rollout.sample_index, rollout, store.rewards[index])
        )
    ordered = [sorted(each, key=lambda one: one[0]) for each in by_prompt.values()]
    return RolloutBlock(
        number=number,
        rows=drawing.rows,
        rollouts=tuple(tuple(rollout for _, rollout, _ in each) for each in ordered),
        rewards=tuple(tuple(reward for _, _, reward in each) for each in ordered),
    )
