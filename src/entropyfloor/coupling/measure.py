"""What is measured at the checkpoints of a run, each at most once.

    FOLDER/settings.json                     what determines the numbers; other settings are refused
    FOLDER/rollouts-NAME-DIGEST.jsonl        rollouts of a checkpoint for the prompts, with rewards
    FOLDER/rollouts-own-NAME-DIGEST.jsonl    its samples for the demonstrations' prompts
    FOLDER/KIND-NAME-DIGEST.json             losses, pair sums, gradients

DIGEST changes when a checkpoint's files are written again. Checkpoints may be added from one run to
the next; rows, reward and seed may not change.
"""

import gc
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor.coupling.alignment import GradientAlignment, align
from entropyfloor.coupling.divergence import PairSums, pair_sums
from entropyfloor.coupling.gradients import (
    BLOCKS,
    block_gradients,
    chosen_parameters,
    rl_blocks,
    sft_blocks,
)
from entropyfloor.coupling.options import CouplingOptions
from entropyfloor.coupling.preparation import Run
from entropyfloor.io import claim_folder, plain, restore, write_atomic
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.draw import Drawing, draw_rollouts, progress_bars, quiet_loading
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.rollouts.rollout_store import RolloutStore, checkpoint_digest
from entropyfloor.rollouts.rollouts import Rollout, generate_rollouts
from entropyfloor.rollouts.teacher_forced import Completion, held_out_loss, rollout_completions
from entropyfloor.screening.measure import scored_groups

Scored = tuple[Rollout, float | None]  # None: the reward does not apply


@dataclass(frozen=True)
class Plan:
    """What to measure, the same for every checkpoint."""

    prompts: PromptSet  # of the reward
    reward: RewardFunction  # scores rollouts
    encoded: Sequence[Sequence[int]]  # token ids per prompt
    demonstrations: Sequence[Completion]  # with their prompts, in tokens
    sampling: Sampling  # how rollouts are drawn; at temperature 1, without top-p and top-k
    options: CouplingOptions  # of everything else
    folder: Path | None  # keeps what was measured; None for nowhere


@dataclass(frozen=True)
class Measurement:
    """One checkpoint."""

    losses: Sequence[float]  # summed loss of each demonstration, nats
    rewards: dict[int, list[float]]  # of the prompts that the reward applies to, by index
    rollouts: Sequence[Rollout]  # all rollouts, prompt by prompt
    alignment: GradientAlignment | None  # None without gradients
    notes: tuple[str, ...]  # what else to know
    # It and the start, as SFT and RL model, on the same tokens: along own (samples of the SFT model
    # for the demonstrations' prompts), demonstrations, and rollouts (those of the RL model for the
    # prompts). Empty for the start.
    pair: dict[str, PairSums] = field(default_factory=dict)
    runtime_s: float = 0.0  # seconds


class _Model(NamedTuple):
    source: CheckpointSource
    load: Callable[[], LoadedCheckpoint]  # the first call loads; never called if all is kept


def claim(folder: Path, determines: dict[str, Any]) -> None:
    """Make the folder, or check that what is in it was measured with the same settings.

    Raises:
        ValueError: it was not, or the folder holds something else.

    """
    if not (folder / "settings.json").is_file() and any(folder.glob("rollouts-*.jsonl")):
        raise ValueError(
            f"{folder} holds rollouts of something else; give another output directory"
        )
    claim_folder(folder, {"schema": "entropyfloor.coupling.settings", **determines})


def measure(
    run: Run,
    plan: Plan,
    load: Callable[[CheckpointSource], LoadedCheckpoint],
    *,
    progress: bool,
) -> list[Measurement]:
    """Rollouts and rewards, held-out loss, gradients; with the start as the partner, both KLs."""
    start = _Model(run.sources[0], cache(partial(load, run.sources[0])))
    samples = len(plan.prompts) * plan.sampling.num_samples
    pair_samples = len(plan.demonstrations) * plan.options.sft_samples
    totals = [samples, *[samples + pair_samples] * (len(run.sources) - 1)]
    measured: list[Measurement] = []
    with quiet_loading(), progress_bars(enabled=progress) as bars:
        rows = [bars.add_task(s.name, total=n) for s, n in zip(run.sources, totals, strict=True)]
        for source, row in zip(run.sources, rows, strict=True):
            began, advance = time.perf_counter(), partial(bars.advance, row)
            model = _Model(source, cache(partial(load, source))) if measured else start
            one = _measure_alone(model, plan, advance)
            if measured and list(one.rewards) != list(measured[0].rewards):
                raise ValueError(
                    f"the reward applies to {len(measured[0].rewards)} prompts at "
                    f"{run.sources[0].name} and to {len(one.rewards)}, or others, at "
                    f"{source.name}; whether a reward applies must depend on the prompt alone"
                )
            pair: dict[str, PairSums] = {}
            if measured:
                later_is_rl = run.order == "sft-rl"
                sft, rl = (start, model) if later_is_rl else (model, start)
                rollouts = (one if later_is_rl else measured[0]).rollouts
                pair = _measure_pair(sft, rl, rollouts, plan, advance, kept_with=source)
            runtime_s = time.perf_counter() - began
            measured.append(replace(one, pair=pair, runtime_s=runtime_s))
            del model
            gc.collect()
    return measured


def _measure_alone(model: _Model, plan: Plan, advance: Callable[[int], None]) -> Measurement:
    size, demonstrations = plan.sampling.num_samples, plan.demonstrations
    rows = _draw(model, plan.encoded, size, plan, advance, plan.reward)
    groups = [rows[first : first + size] for first in range(0, len(rows), size)]
    scored_groups([[reward for _, reward in group] for group in groups])  # raises

    def losses() -> Sequence[float]:
        return held_out_loss(model.load(), demonstrations, num_prompts=len(demonstrations)).sums

    applies = [
        scored
        for group in groups
        if (scored := [(rollout, reward) for rollout, reward in group if reward is not None])
    ]
    kept_losses = _kept(plan.folder, "losses", model.source, None, losses)
    alignment, note = _alignment(model, plan, applies)
    return Measurement(
        kept_losses,
        {group[0][0].prompt_index: [reward for _, reward in group] for group in applies},
        [rollout for rollout, _ in rows],
        alignment,
        (note,) if note else (),
    )


def _measure_pair(
    sft: _Model,
    rl: _Model,
    rl_rollouts: Sequence[Rollout],
    plan: Plan,
    advance: Callable[[int], None],
    *,
    kept_with: CheckpointSource,
) -> dict[str, PairSums]:
    """Draw the SFT model's samples and read all texts with both models."""
    prompts = [list(completion.prompt_ids) for completion in plan.demonstrations]
    samples = [s for s, _ in _draw(sft, prompts, plan.options.sft_samples, plan, advance, None)]

    def sums() -> dict[str, Any]:
        models = sft.load(), rl.load()
        texts = {
            "own": rollout_completions(samples, prompts),
            "demonstrations": plan.demonstrations,
            "rollouts": rollout_completions(rl_rollouts, plan.encoded),
        }
        return {name: asdict(pair_sums(*models, rows)) for name, rows in texts.items()}

    digests = checkpoint_digest(sft.source), checkpoint_digest(rl.source)
    key = [*digests, len(samples), len(rl_rollouts)]
    pair = _kept(plan.folder, "pair", kept_with, key, sums)
    return {name: PairSums(**part) for name, part in pair.items()}


def _draw(
    model: _Model,
    encoded: Sequence[Sequence[int]],
    samples: int,
    plan: Plan,
    advance: Callable[[int], None],
    reward: RewardFunction | None,
) -> list[Scored]:
    """Rollouts and rewards by prompt and sample; those that are kept are not drawn again.

    Without a reward they are samples for the demonstrations' prompts, and go to another file.
    """
    kind = "own-" if reward is None else ""
    store = RolloutStore(plan.folder, f"{kind}{_name(model.source)}")
    drawing = Drawing(
        plan.prompts,
        encoded,
        reward,
        replace(plan.sampling, num_samples=samples),
        greedy=False,
        tau_h=None,
        rows=range(len(encoded)),
    )
    draw_rollouts(
        drawing, store, load=lambda: partial(generate_rollouts, model.load()), advance=advance
    )
    # A folder may hold more samples than are asked for.
    rows = [(store.rollouts[i], store.rewards[i]) for i in drawing.chosen(store, None)]
    return sorted(rows, key=lambda row: (row[0].prompt_index, row[0].sample_index))


def _alignment(
    model: _Model, plan: Plan, groups: Sequence[Sequence[tuple[Rollout, float]]]
) -> tuple[GradientAlignment | None, str]:
    """Of the gradients, and a note."""
    if not plan.options.gradient_rows:
        return None, ""
    demonstrations = plan.demonstrations[: plan.options.gradient_rows]
    chosen = groups[: plan.options.gradient_rows]
    blocks = min(BLOCKS, len(demonstrations), len(chosen))
    if blocks < 2:
        return None, "gradients need two demonstrations and two prompts, to tell signal from noise"

    def aligned() -> dict[str, Any]:
        checkpoint = model.load()
        kind, _ = chosen_parameters(checkpoint)
        gradients = block_gradients(
            checkpoint,
            sft_blocks(demonstrations, blocks),
            rl_blocks(chosen, plan.encoded, blocks),
            memory_bytes=int(plan.options.gradient_memory * 2**30),
        )
        return asdict(align(gradients, parameters=kind, rank=plan.options.rank))

    key = [plan.options.gradient_rows, plan.options.rank, plan.sampling.num_samples, blocks]
    kept = _kept(plan.folder, "gradients", model.source, key, aligned)
    alignment: GradientAlignment = restore(GradientAlignment, kept)
    if alignment.whole.agreement.cosine is None:
        return alignment, (
            "a gradient vanishes: the rewards of every group agree, or the loss is flat"
        )
    return alignment, ""


def _kept(
    folder: Path | None, kind: str, source: CheckpointSource, key: Any, measured: Callable[[], Any]
) -> Any:
    """JSON data that ``measured`` returns, now or earlier; ``key`` says what it depends on."""
    file = None if folder is None else folder / f"{kind}-{_name(source)}.json"
    if file is not None and file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["value"]
    value = plain(measured())
    if file is not None:
        text = json.dumps({"key": key, "value": value}, ensure_ascii=False)  # may be infinite
        write_atomic(file, text)
    return value


def _name(source: CheckpointSource) -> str:
    """Part of a file's name: a checkpoint of that name elsewhere, or a new one, is another."""
    # The folder's name, not the one in tables, which depends on what else was listed.
    name = source.directory.name
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    where = hashlib.sha256(str(source.directory.resolve()).encode()).hexdigest()[:6]
    return f"{safe}-{where}-{checkpoint_digest(source)[:8]}"
