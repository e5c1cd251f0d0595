"""Draw the rollouts of one checkpoint that are still missing, all at once or look by look.

Look by look (``until_decided``): prompts are taken in a random order that depends on the seed only,
the same for every checkpoint, each with all its rollouts, so that groups are whole whenever it
stops. After 20, 40, 60, 80 and 100 % of the prompts the mean entropy is compared with tau_H at
bounds that keep the rate of wrong decisions over all looks (``stats/group_sequential.py``).
Looks at fewer than eight prompts are left out: a spread estimated from fewer says little.

Block by block (`RolloutBlocks`): what is in memory are the rollouts of 256 prompts, however many
prompts there are. They do not depend on the blocks: same engine, same sampling, same seeds. A
killed run goes on from the last whole batch; more samples extend what is there.

    FOLDER/rollouts.json               what determines the rollouts; other settings are refused
    FOLDER/rollouts-NAME-00000.jsonl   the rollouts of the first 256 prompts, and so on

The progress bars on standard error are made here too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from entropyfloor.rollouts.engines import Engine, ready_to_draw
from entropyfloor.rollouts.options import Loading, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction, score_rollouts
from entropyfloor.rollouts.rollout_store import (
    RolloutStore,
    checkpoint_digest,
    open_folder,
    what_determines,
)
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.stats.group_sequential import SequentialRecord, bounds, look

# Below the 5 % that is promised: entropies are skewed, which costs up to 2 points at few prompts.
ERROR_RATE = 0.03
_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
FEWEST_PROMPTS = 8


@dataclass(frozen=True)
class Drawing:
    """What to draw of every checkpoint.

    ``encoded`` holds token ids per prompt; ``reward`` scores each batch; ``greedy`` asks for one
    greedy rollout per prompt besides; ``tau_h`` (nats) stops once the entropy is decided to lie
    above or below, None draws everything; ``rows`` are the prompts to draw from, None for all.
    """

    prompts: PromptSet
    encoded: Sequence[Sequence[int]]
    reward: RewardFunction | None
    sampling: Sampling
    greedy: bool
    tau_h: float | None
    processes: Processes = Processes()
    rows: Sequence[int] | None = None

    def looks(self) -> list[list[int]]:
        """Prompt indices seen by each look; all of them at once without ``tau_h``."""
        count = len(self.prompts)
        if self.tau_h is None:
            return [list(range(count) if self.rows is None else self.rows)]
        order = np.random.default_rng((self.sampling.seed, count)).permutation(count).tolist()
        sizes = sorted({int(fraction * count) for fraction in _FRACTIONS} | {count})
        return [order[:size] for size in sizes if size >= min(count, FEWEST_PROMPTS)]

    def requests(self, prompts: Sequence[int]) -> list[tuple[int, int, bool]]:
        """(prompt, sample, greedy) of everything wanted of these prompts."""
        wanted = [(p, s, False) for p in sorted(prompts) for s in range(self.sampling.num_samples)]
        return wanted + ([(p, 0, True) for p in sorted(prompts)] if self.greedy else [])

    def chosen(self, store: RolloutStore, sequential: SequentialRecord | None) -> list[int]:
        """Which rollouts of the store to measure; it may hold more, from an earlier run."""
        looks = self.looks()
        seen = looks[-1] if sequential is None else looks[sequential.looks - 1]
        wanted = set(self.requests(seen))
        return [
            index
            for index, r in enumerate(store.rollouts)
            if (r.prompt_index, r.sample_index, r.greedy) in wanted
        ]


def draw_rollouts(
    drawing: Drawing,
    store: RolloutStore,
    *,
    load: Callable[[], Engine],
    advance: Callable[[int], None],
) -> SequentialRecord | None:
    """Fill the store with what is wanted and missing; the model is loaded only if anything is.

    ``load`` gives the checkpoint, ready to generate; ``advance`` is told how many rollouts have
    come to be there.
    """
    engine: Engine | None = None
    processes = drawing.processes
    looks = drawing.looks()
    counted: set[tuple[int, int, bool]] = set()
    for number, prompts in enumerate(looks, start=1):
        wanted = drawing.requests(prompts)
        # The main process alone knows what all of them have drawn.
        missing = processes.from_main(set(wanted) - store.drawn)
        advance(len(set(wanted) - missing - counted))
        counted |= set(wanted)
        if missing and engine is None:
            engine = load()
        for greedy in (False, True):
            pairs = [(p, s) for p, s, g in sorted(missing) if g == greedy]
            if engine is not None and pairs:
                _draw(drawing, store, engine, pairs, greedy=greedy, advance=advance)
        advance(store.collect())
        if drawing.tau_h is None:
            return None
        record = processes.from_main(
            _judge(drawing, store, looks, number) if processes.main else None
        )
        assert record is not None
        if record.decision != "undecided" or number == len(looks):
            advance(len(drawing.requests(looks[-1])) - len(counted))
            return record
    raise AssertionError("there is at least one look")


def replay(drawing: Drawing, store: RolloutStore) -> SequentialRecord | None:
    """What the looks decide on rollouts that are there; None before the first is complete."""
    record = None
    looks = drawing.looks()
    for number, prompts in enumerate(looks, start=1):
        if not set(drawing.requests(prompts)) <= store.drawn:
            break
        record = _judge(drawing, store, looks, number)
        if record.decision != "undecided":
            break
    return record


def _draw(
    drawing: Drawing,
    store: RolloutStore,
    engine: Engine,
    pairs: list[tuple[int, int]],
    *,
    greedy: bool,
    advance: Callable[[int], None],
) -> None:
    sampling = drawing.sampling
    if greedy:  # the one most probable token is drawn whatever the uniforms are
        sampling = replace(sampling, top_k=1, top_p=1.0, temperature=1.0)
    for drawn in engine(drawing.encoded, pairs, sampling, drawing.processes):
        batch = [replace(rollout, greedy=greedy) for rollout in drawn]
        rewards = None
        if drawing.reward is not None:
            rewards = score_rollouts(drawing.reward, drawing.prompts, batch)
        store.append(batch, rewards)
        advance(len(batch))


def _judge(
    drawing: Drawing, store: RolloutStore, looks: list[list[int]], number: int
) -> SequentialRecord:
    assert drawing.tau_h is not None
    sums = {prompt: [0.0, 0.0] for prompt in sorted(looks[number - 1])}
    for rollout in sorted(store.rollouts, key=lambda r: (r.prompt_index, r.sample_index)):
        wanted = not rollout.greedy and rollout.sample_index < drawing.sampling.num_samples
        if wanted and rollout.prompt_index in sums:
            sums[rollout.prompt_index][0] += float(rollout.entropies_nats.sum(dtype=float))
            sums[rollout.prompt_index][1] += len(rollout.token_ids)
    entropies, tokens = zip(*sums.values(), strict=True)
    levels = bounds(tuple(len(seen) / len(drawing.prompts) for seen in looks), ERROR_RATE)
    judged = look(entropies, tokens, drawing.tau_h, bound=levels[number - 1])
    return SequentialRecord(
        decision=judged.decision,
        looks=number,
        samples_planned=len(drawing.requests(looks[-1])),
        samples_drawn=len(drawing.requests(looks[number - 1])),
        low=judged.low,
        high=judged.high,
        error_rate=ERROR_RATE,
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' own bars, which would be drawn across ours."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def progress_bars(*, enabled: bool) -> Progress:
    """One bar per checkpoint, counting rollouts; those of other processes once they are sent."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # a name may hold [ and ]
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rollouts"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )


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
