"""The probe: mean next-token entropy of a few rollouts of the model in training.

The same engine as screening, on a handful of held-out prompts, one or more samples each, at
temperature 1. Samples are drawn from their own seed: no random state of the training is consumed.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from entropyfloor.models.checkpoint_sources import step_folders
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.model_state import WholeCopy, evaluating
from entropyfloor.models.ranks import largest, rank_and_processes, summed, wide_dtype
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.rewards import RewardFunction, check_references, score_rollouts
from entropyfloor.rollouts.rollouts import (
    check_lengths,
    generate_rollouts,
)
from entropyfloor.sft.run_record import read_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeResult:
    """One probe."""

    step: int  # optimiser step after which it was taken
    # Token-weighted mean next-token entropy of the rollouts, nats; None: held-out rows alone
    entropy: float | None
    # Smoothed teacher-forced entropy of training at that step, nats, or None
    teacher_forced: float | None
    tokens: int  # how many were generated
    seconds: float  # it took, on the slowest process
    # Share of the rollouts whose reward is at least 1; None without a reward
    pass_at_1: float | None = None
    # entropy_floor="auto": loss and entropy of held-out rows, nats per token
    held_out_loss: float | None = None
    held_out_entropy: float | None = None

    @property
    def held(self) -> float:
        """The entropy that the floor is about, nats: of held-out rows, else of rollouts."""
        held = self.entropy if self.held_out_entropy is None else self.held_out_entropy
        assert held is not None
        return held

    @property
    def calibration_gap(self) -> float | None:
        """Entropy minus loss of held-out rows; below 0 the model is too sure of itself."""
        if self.held_out_entropy is None or self.held_out_loss is None:
            return None
        return self.held_out_entropy - self.held_out_loss


@dataclass
class RolloutProbe:
    """Samples rollouts of the model in training.

    Args:
        prompts: held out from training.
        tokenizer: the model's.
        max_new_tokens: length limit.
        batch_size: rollouts at once.
        seed: of the samples; each step draws its own.
        reward: in trl's signature, on the prompts' columns; for ``pass_at_1``.
        context_length: of the model, in tokens; None: unknown.
        whole: of a model that processes share: what rollouts are drawn from.

    Raises:
        ValueError: rows without what the reward needs, a prompt that the tokenizer cannot render,
            or one that leaves no room for ``max_new_tokens``.

    """

    prompts: PromptSet
    tokenizer: Any
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0
    reward: RewardFunction | None = None
    context_length: int | None = None
    whole: WholeCopy | None = None

    def __post_init__(self) -> None:
        if self.reward is not None:
            check_references(self.reward, self.prompts)
        self._encoded = encode_prompts(self.prompts, self.tokenizer, where="the model in training")
        check_lengths(
            self._encoded,
            context_length=self.context_length,
            max_new_tokens=self.max_new_tokens,
            where="the model in training (max_new_tokens is floor_probe_tokens)",
        )
        self._sampling = Sampling(
            max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, seed=self.seed
        )

    def measure(self, model: Any, *, step: int, teacher_forced: float | None) -> ProbeResult:
        """One rollout per prompt, prompts spread over processes; the same result on every one."""
        started = time.perf_counter()
        rank, ranks = rank_and_processes()
        sampling = replace(self._sampling, seed=self.seed + step)
        entropy, tokens, scored, passed = 0.0, 0, 0, 0
        with self._whole(model) as policy:
            checkpoint = LoadedCheckpoint("the model in training", "", policy, self.tokenizer)
            requests = [(prompt, 0) for prompt in range(rank, len(self._encoded), ranks)]
            for rollouts in generate_rollouts(checkpoint, self._encoded, requests, sampling):
                entropy += math.fsum(float(r.entropies_nats.sum(dtype=float)) for r in rollouts)
                tokens += sum(len(r.token_ids) for r in rollouts)
                if self.reward is not None:
                    rewards = score_rollouts(self.reward, self.prompts, rollouts)
                    scored += sum(value is not None for value in rewards)
                    passed += sum(value is not None and value >= 1.0 for value in rewards)
        device = model.device
        seconds = largest(time.perf_counter() - started, device)
        if ranks > 1:
            local = torch.tensor([entropy, tokens, scored, passed], dtype=torch.float64)
            sums = summed(local.to(device, wide_dtype(device)))
            entropy, tokens = float(sums[0]), int(sums[1])
            scored, passed = int(sums[2]), int(sums[3])
        return ProbeResult(
            step=step,
            entropy=entropy / max(tokens, 1),
            teacher_forced=teacher_forced,
            tokens=tokens,
            seconds=seconds,
            pass_at_1=passed / scored if scored else None,
        )

    @contextmanager
    def _whole(self, model: Any) -> Iterator[Any]:
        if self.whole is None:
            with evaluating(model):
                yield model
        else:
            with self.whole.filled(model) as policy:
                yield policy


def prompts_of(dataset: Any, count: int) -> PromptSet | None:
    """The first ``count`` rows with different prompts of a dataset that has them, or None.

    Args:
        dataset: a dataset, streamed or not, a dict of them (the first counts), or None.
        count: how many at most; of a streamed set no more than ``64 * count`` rows are read.

    """
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if count < 1 or not hasattr(dataset, "column_names"):  # which datasets of `datasets` have
        return None
    # A streamed set does not know its columns after `map`, so its first row says. Each reading of
    # it begins anew: nothing is taken away from the training.
    rows = dataset if hasattr(dataset, "__len__") else islice(dataset, 64 * count)
    different: dict[str, Any] = {}
    for row in rows:
        if "prompt" not in row:
            break
        different.setdefault(repr(row["prompt"]), row)
        if len(different) == count:
            break
    return PromptSet(tuple(different.values()), "the dataset's prompts") if different else None


def probed_prompts(
    prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None,
    datasets: Sequence[Any],
    count: int,
) -> PromptSet | None:
    """The first prompts that are given; without, those of the first dataset that has any, or None.

    Args:
        prompts: to be probed.
        datasets: each as in `prompts_of`.
        count: how many at most.

    """
    if isinstance(prompts, str):
        raise ValueError(f"probe_prompts is the text {prompts!r:.40}; give a list of prompts")
    # Not sliced: a slice of a `datasets.Dataset` is a dict of columns.
    passed = islice(prompts.rows if isinstance(prompts, PromptSet) else prompts or (), count)
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in passed]
    sets = (prompts_of(dataset, count) for dataset in datasets)
    return PromptSet(tuple(rows), "probe_prompts") if rows else next(filter(None, sets), None)


def measured(checkpoint: str | Path) -> ProbeResult | None:
    """The probe of rollouts that a checkpoint was saved with; None where there was none."""
    record = (read_record(checkpoint) or {}).get("floor")
    return ProbeResult(**record["probes"][-1]) if record and record["probes"] else None


def last_above(output_dir: str | Path, floor: float) -> Path | None:
    """The latest checkpoint-* of a run whose entropy was measured at ``floor`` or above, or None.

    The entropy is that which the run's floor is about: of rollouts, or of held-out rows.
    """
    above = _above(output_dir, floor)
    return above[0][0] if above else None


def best_above(output_dir: str | Path, floor: float) -> Path | None:
    """The checkpoint-* with the highest pass@1 among those above ``floor`` (the latest of equals).

    Raises:
        ValueError: a checkpoint above the floor was saved without pass@1.

    """
    above = _above(output_dir, floor)
    for path, probe in above:
        if probe.pass_at_1 is None:
            raise ValueError(f"{path} has no pass@1; train with SEDTrainer(probe_reward=...)")
    return max(above, key=lambda pair: pair[1].pass_at_1 or 0.0)[0] if above else None


def _above(output_dir: str | Path, floor: float) -> list[tuple[Path, ProbeResult]]:
    newest_first = reversed(step_folders(Path(output_dir)))
    probes = [(path, probe) for path in newest_first if (probe := measured(path)) is not None]
    return [(path, probe) for path, probe in probes if probe.held >= floor]
