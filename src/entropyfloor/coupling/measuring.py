"""What is measured at one checkpoint, and of one pair of checkpoints, each at most once."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

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
from entropyfloor.coupling.preparation import Encoded
from entropyfloor.coupling.report import alignment_from_dict
from entropyfloor.coupling.store import CouplingStore
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.rollouts.rollout_store import RolloutStore, checkpoint_digest
from entropyfloor.rollouts.rollouts import Rollout, generate_rollouts
from entropyfloor.rollouts.scoring import score_rollouts
from entropyfloor.rollouts.teacher_forced import Completion, held_out_loss
from entropyfloor.screening.estimates import scored_groups
from entropyfloor.screening.records import plain

Load = Callable[[], LoadedCheckpoint]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, the same for every checkpoint.

    Attributes:
        prompts: of the reward.
        reward: scores rollouts.
        encoded: prompts and demonstrations in tokens.
        sampling: how rollouts are drawn; at temperature 1, without top-p and top-k.
        options: of everything else.

    """

    prompts: PromptSet
    reward: RewardFunction
    encoded: Encoded
    sampling: Sampling
    options: CouplingOptions


@dataclass(frozen=True)
class Alone:
    """One checkpoint by itself.

    Attributes:
        losses: summed loss of each demonstration, nats.
        rewards: rewards of each prompt's rollouts; prompts that the reward applies to.
        rollouts: all rollouts, prompt by prompt.
        alignment: None without gradients.
        notes: what else to know.

    """

    losses: tuple[float, ...]
    rewards: list[list[float]]
    rollouts: tuple[Rollout, ...]
    alignment: GradientAlignment | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """An SFT and an RL model on the same tokens.

    Attributes:
        own: along the SFT model's samples for the demonstrations' prompts.
        own_prompts: the demonstration that each sample is for.
        demonstrations: along the demonstrations.
        rollouts: along the RL model's rollouts for the prompts.
        rollout_prompts: the prompt of each.

    """

    own: PairSums
    own_prompts: tuple[int, ...]
    demonstrations: PairSums
    rollouts: PairSums
    rollout_prompts: tuple[int, ...]


def measure_alone(
    source: CheckpointSource, plan: Plan, store: CouplingStore, load: Load, advance: Advance
) -> Alone:
    """Rollouts and rewards, held-out loss, gradients; from the store where it has them."""
    drawn = store.rollouts(source)
    pairs = [(p, s) for p in range(len(plan.prompts)) for s in range(plan.sampling.num_samples)]
    _draw(drawn, plan.encoded.prompts, pairs, plan, load, advance, plan.reward)
    rollouts, rewards = _in_order(drawn, plan.sampling.num_samples)

    losses = store.read("losses", source, None)
    if losses is None:
        demonstrations = plan.encoded.demonstrations
        losses = held_out_loss(load(), demonstrations, num_prompts=len(demonstrations)).sums
        store.write("losses", source, None, losses)
    groups = _groups(rollouts, rewards, len(plan.prompts))
    alignment, note = _alignment(source, plan, store, load, groups)
    return Alone(
        tuple(losses),
        [[reward for _, reward in group] for group in groups],
        tuple(rollouts),
        alignment,
        (note,) if note else (),
    )


def measure_pair(
    sft: tuple[CheckpointSource, Load],
    rl: tuple[CheckpointSource, Load],
    rl_rollouts: Sequence[Rollout],
    plan: Plan,
    store: CouplingStore,
    advance: Advance,
    *,
    kept_with: CheckpointSource,
) -> Pair:
    """Draw the SFT model's own samples and read all texts with both models.

    Args:
        sft: the SFT model.
        rl: the RL model.
        rl_rollouts: of the RL model, for the prompts.
        plan: what to measure.
        store: keeps the result, as one of ``kept_with``.
        advance: told how many samples have come to be there.
        kept_with: the one of the two that is not the start.

    """
    own = store.rollouts(sft[0], own=True)
    encoded = plan.encoded
    rows = range(len(encoded.demonstrations))
    wanted = [(row, sample) for row in rows for sample in range(plan.options.own_samples)]
    _draw(own, encoded.demonstration_prompts, wanted, plan, sft[1], advance, None)
    samples, _ = _in_order(own, plan.options.own_samples)
    own_prompts = tuple(sample.prompt_index for sample in samples)
    rollout_prompts = tuple(rollout.prompt_index for rollout in rl_rollouts)

    key = [checkpoint_digest(sft[0]), checkpoint_digest(rl[0]), len(samples), len(rl_rollouts)]
    found = store.read("pair", kept_with, key)
    if found is None:
        models = sft[1](), rl[1]()
        texts = {
            "own": _completions(samples, encoded.demonstration_prompts),
            "demonstrations": encoded.demonstrations,
            "rollouts": _completions(rl_rollouts, encoded.prompts),
        }
        found = {name: asdict(pair_sums(*models, rows)) for name, rows in texts.items()}
        store.write("pair", kept_with, key, found)
    sums = {n: PairSums(**{k: tuple(v) for k, v in part.items()}) for n, part in found.items()}
    return Pair(sums["own"], own_prompts, sums["demonstrations"], sums["rollouts"], rollout_prompts)


def by_prompt(values: Sequence[float], prompts: Sequence[int], count: int) -> np.ndarray:
    """Sum of the values of each prompt, ``[count]``."""
    return np.bincount(np.asarray(prompts), weights=np.asarray(values, float), minlength=count)


def _draw(
    store: RolloutStore,
    encoded: Sequence[Sequence[int]],
    wanted: Sequence[tuple[int, int]],
    plan: Plan,
    load: Load,
    advance: Advance,
    reward: RewardFunction | None,
) -> None:
    missing = [(p, s) for p, s in wanted if (p, s, False) not in store.drawn]
    advance(len(wanted) - len(missing))
    if not missing:
        return
    for batch in generate_rollouts(load(), encoded, missing, plan.sampling):
        rewards = None if reward is None else score_rollouts(reward, plan.prompts, batch)
        store.append(batch, rewards)
        advance(len(batch))


def _in_order(store: RolloutStore, samples: int) -> tuple[list[Rollout], list[float | None]]:
    """Rollouts and rewards by prompt and sample; a folder may hold more samples than asked for."""
    rows = sorted(
        zip(store.rollouts, store.rewards, strict=True),
        key=lambda row: (row[0].prompt_index, row[0].sample_index),
    )
    rows = [row for row in rows if row[0].sample_index < samples]
    return [row[0] for row in rows], [row[1] for row in rows]


def _groups(
    rollouts: Sequence[Rollout], rewards: Sequence[float | None], count: int
) -> list[list[tuple[Rollout, float]]]:
    """(rollout, reward) of each prompt that the reward applies to."""
    by_number: list[list[tuple[Rollout, float | None]]] = [[] for _ in range(count)]
    for rollout, reward in zip(rollouts, rewards, strict=True):
        by_number[rollout.prompt_index].append((rollout, reward))
    scored_groups([[reward for _, reward in group] for group in by_number])  # raises
    return [
        [(r, v) for r, v in group if v is not None]
        for group in by_number
        if group[0][1] is not None
    ]


def _alignment(
    source: CheckpointSource,
    plan: Plan,
    store: CouplingStore,
    load: Load,
    groups: Sequence[Sequence[tuple[Rollout, float]]],
) -> tuple[GradientAlignment | None, str]:
    if not plan.options.gradient_rows:
        return None, ""
    demonstrations = plan.encoded.demonstrations[: plan.options.gradient_rows]
    chosen = groups[: plan.options.gradient_rows]
    blocks = min(BLOCKS, len(demonstrations), len(chosen))
    if blocks < 2:
        return None, "gradients need two demonstrations and two prompts, to tell signal from noise"
    key = [plan.options.gradient_rows, plan.options.rank, plan.sampling.num_samples, blocks]
    found = store.read("gradients", source, key)
    if found is None:
        checkpoint = load()
        kind, _ = chosen_parameters(checkpoint)
        gradients = block_gradients(
            checkpoint,
            sft_blocks(demonstrations, blocks),
            rl_blocks(chosen, plan.encoded.prompts, blocks),
            memory_bytes=int(plan.options.gradient_memory * 2**30),
        )
        found = plain(asdict(align(gradients, parameters=kind, rank=plan.options.rank)))
        store.write("gradients", source, key, found)
    alignment = alignment_from_dict(found)
    assert alignment is not None
    note = ""
    if alignment.whole.agreement.cosine is None:
        note = "a gradient vanishes: the rewards of every group agree, or the loss is flat"
    return alignment, note


def _completions(rollouts: Sequence[Rollout], encoded: Sequence[Sequence[int]]) -> list[Completion]:
    return [
        Completion(r.prompt_index, tuple(encoded[r.prompt_index]), r.token_ids) for r in rollouts
    ]
