"""What a callback cannot see of a GRPOTrainer: the rewards, and the entropy of every single step.

transformers hands callbacks no trainer, and trl logs averages over ``logging_steps``. So the probe
wraps two methods on the trainer *object* while it trains, and changes neither arguments nor result:

    _calculate_rewards   once per generation batch, however often that batch is used again; returns
                         the rewards of all ranks, one column per reward function, groups side by
                         side. Reward models, coroutines and environments end there like functions.
    compute_loss         once per micro-batch; trl has then appended the micro-batch's entropy over
                         all ranks to its metrics. Weighted by its tokens, summed over ranks, these
                         give the mean over the tokens of the whole step.

Evaluation is left out. tests/entropyfloor/rl/test_canary.py fails when these parts of trl move.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from entropyfloor.rl.group_counts import GroupCounts, count_groups

_NEEDED = (
    "_calculate_rewards",
    "compute_loss",
    "_metrics",
    "num_generations",
    "reward_weights",
    "reward_func_names",
    "accelerator",
)


def can_probe(trainer: Any) -> bool:
    """Whether the trainer has what a probe reads."""
    return all(hasattr(trainer, name) for name in _NEEDED)


class GRPOProbe:
    """Collect rewards and entropies of one trainer until :meth:`detach`.

    Args:
        trainer: a ``trl.GRPOTrainer`` or a subclass.
        success_threshold: see :func:`~entropyfloor.rl.group_counts.count_groups`.
        success_reward: name of the reward function that tells whether a rollout passed; the first
            with a weight when left out.

    Raises:
        ValueError: no reward function of that name.

    """

    def __init__(
        self, trainer: Any, *, success_threshold: float = 1.0, success_reward: str | None = None
    ) -> None:
        names = list(trainer.reward_func_names)
        if success_reward is not None and success_reward not in names:
            raise ValueError(
                f"success_reward {success_reward!r} is none of the trainer's reward functions: "
                f"{', '.join(names)}"
            )
        weights = trainer.reward_weights.tolist()
        first = next((i for i, weight in enumerate(weights) if weight != 0.0), 0)
        self.trainer = trainer
        self.success_function = first if success_reward is None else names.index(success_reward)
        self.success_threshold = success_threshold
        self.counts = GroupCounts()
        self._counted = False  # the last generation batch
        self._entropies: list[float] = []
        self._tokens: list[torch.Tensor] = []
        self._originals: dict[str, Callable[..., Any]] = {}
        self._wrap("_calculate_rewards", self._see_rewards)
        self._wrap("compute_loss", self._see_loss)

    @property
    def success_reward(self) -> str:
        """Name of the reward function that tells whether a rollout passed."""
        return str(self.trainer.reward_func_names[self.success_function])

    def detach(self) -> None:
        """Give the trainer its own methods back."""
        for name, original in self._originals.items():
            if getattr(original, "__self__", None) is self.trainer:
                del self.trainer.__dict__[name]
            else:  # it was an attribute of the object before
                setattr(self.trainer, name, original)
        self._originals = {}

    def take_step(self) -> tuple[float | None, GroupCounts]:
        """Entropy (nats) and groups since the last call, over all ranks; every rank must call it.

        Returns:
            The token-weighted mean entropy, None if there is none; NaN if trl's was.

        """
        counts, self.counts = self.counts, GroupCounts()
        entropies, self._entropies = self._entropies, []
        tokens, self._tokens = self._tokens, []
        if not entropies:
            return None, counts
        weights = self.trainer.accelerator.reduce(torch.stack(tokens), reduction="sum").tolist()
        total = sum(weights)
        if total == 0:
            return None, counts
        pairs = zip(entropies, weights, strict=True)
        return math.fsum(h * w for h, w in pairs if w) / total, counts

    def log(self, name: str, value: float) -> None:
        """Put a number among trl's metrics, which it averages and logs with its own."""
        self.trainer._metrics["train"][name].append(value)

    def _wrap(self, name: str, see: Callable[..., Any]) -> None:
        original = getattr(self.trainer, name)
        self._originals[name] = original

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            return see(original, *arguments, **keywords)

        setattr(self.trainer, name, wrapped)

    def _see_rewards(self, original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        rewards = original(*arguments, **keywords)
        if self.trainer.model.training:
            self._count(rewards.detach().double().cpu().numpy())
            self._counted = True
        return rewards

    def count_elsewhere(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Count a generation batch whose rewards ``_calculate_rewards`` may not have computed.

        Trainers that hand rewards out where they are used call this after each batch; a batch that
        was counted already is left out. With several processes only one of them knows, so nothing
        is counted.

        Args:
            rewards: of every rollout, groups side by side, by the name of the reward function.

        """
        counted, self._counted = self._counted, False
        if not counted and self.trainer.accelerator.num_processes == 1:
            columns = [rewards[name] for name in self.trainer.reward_func_names]
            self._count(np.array(columns, dtype=np.float64).T)

    def _count(self, rewards: np.ndarray) -> None:
        aggregation = getattr(self.trainer, "multi_objective_aggregation", "sum_then_normalize")
        self.counts += count_groups(
            rewards,
            self.trainer.reward_weights.double().cpu().numpy(),
            self.trainer.num_generations,
            success_function=self.success_function,
            success_threshold=self.success_threshold,
            each_function=aggregation == "normalize_then_sum",
        )

    def _see_loss(
        self, original: Callable[..., Any], model: Any, inputs: Any, *rest: Any, **keywords: Any
    ) -> Any:
        if not self.trainer.model.training:
            return original(model, inputs, *rest, **keywords)
        metric = self.trainer._metrics["train"]["entropy"]
        before = len(metric)
        loss = original(model, inputs, *rest, **keywords)
        if len(metric) == before + 1:
            mask = inputs["completion_mask"]
            if "tool_mask" in inputs:  # what tools answered was not sampled
                mask = mask * inputs["tool_mask"]
            self._entropies.append(metric[-1])
            self._tokens.append(mask.sum().float())
        return loss
