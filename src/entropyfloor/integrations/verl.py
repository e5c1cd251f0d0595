"""verl: our losses in its SFT trainer; group counts and the collapse rule in its RL's metrics.

RL needs nothing: verl imports this file by itself (entry point ``verl.plugins``), and each step's
metrics then hold ``groups/degenerate_fraction``, ``groups/pass_rate``, ..., and from the early step
on ``collapse/relative_drop``. `watch_rl` sets the steps.

SFT needs a file of two lines on PYTHONPATH, and verl told to read it:

    # entropy_loss.py
    from entropyfloor.integrations.verl import train_with
    train_with("gem", beta=0.7)

    torchrun -m verl.trainer.sft_trainer model.external_lib=entropy_loss ...

verl computes log-probabilities in the model's forward and its loss afterwards. So the forward is
replaced by one on our statistics, whose log-probabilities and entropies are what they were, and
verl's ``sft_loss`` by one that takes the loss of that forward. Only verl imports this file.
"""

from __future__ import annotations

import functools
import types
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import metric_utils
from verl.utils.tracking import Tracking

from entropyfloor.rl.collapse_rule import (
    COLLAPSED,
    PAPER_EARLY,
    PAPER_LATE,
    WAITING,
    CollapseRule,
    Reading,
)
from entropyfloor.rl.group_counts import GroupCounts, count_groups
from entropyfloor_losses import (
    TokenStatistics,
    linear_token_statistics,
    loss_by_name,
    needs_calibration,
)


@dataclass
class _RLWatch:
    """What `watch_rl` sets, and the entropies seen."""

    rule: CollapseRule
    success_threshold: float
    readings: list[Reading]


_watch = _RLWatch(CollapseRule(PAPER_EARLY, PAPER_LATE), 1.0, [])


def watch_rl(
    *, early_step: int, late_step: int, window: int = 1, success_threshold: float = 1.0
) -> None:
    """Set when the collapse rule compares the actor's entropies, and what counts as a success.

    Args:
        early_step: step of the first entropy; the paper's is 10 of 400.
        late_step: step of the second, and of the verdict; the paper's is 150 of 400.
        window: steps averaged for each of the two.
        success_threshold: a rollout passes if its score is at least this.

    Raises:
        ValueError: steps that cannot be compared.

    """
    _watch.rule = CollapseRule(early_step, late_step, window=window)
    _watch.success_threshold = success_threshold


def group_metrics(scores: Any, groups: Any, success_threshold: float = 1.0) -> dict[str, float]:
    """What the scores of a batch say of its groups.

    Args:
        scores: ``[rollouts]``.
        groups: ``[rollouts]``, verl's ``uid`` of each rollout's prompt.
        success_threshold: see `watch_rl`.

    """
    rewards = np.asarray(scores, dtype=np.float64)
    counts, sizes = GroupCounts(), Counter(groups)
    for name, size in sizes.items():
        rows = rewards[np.asarray(groups) == name][:, None]
        counts += count_groups(rows, np.ones(1), size, success_threshold=success_threshold)
    usual_size = max(Counter(sizes.values()).items(), key=lambda item: (item[1], item[0]))[0]
    return {f"groups/{name}": value for name, value in counts.rates(usual_size).items()}


def collapse_metrics(step: int, entropy: float) -> dict[str, float]:
    """What the actor's entropies up to ``step`` say; ``collapsed`` is 0 or 1 from the late step on.

    Args:
        step: verl's global step.
        entropy: of the actor at that step, nats.

    """
    _watch.readings.append((step, entropy))
    metrics = {}
    drop = _watch.rule.drop_at(_watch.readings, step)
    if drop is not None:
        metrics["collapse/relative_drop"] = drop
    verdict = _watch.rule.judge(_watch.readings, step).verdict
    if verdict != WAITING:
        metrics["collapse/collapsed"] = float(verdict == COLLAPSED)
    return metrics


def _watch_metrics() -> None:
    own_metrics, own_log = metric_utils.compute_data_metrics, Tracking.log

    @functools.wraps(own_metrics)
    def compute_data_metrics(batch: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        metrics = own_metrics(batch, *arguments, **keywords)
        if "uid" in batch.non_tensor_batch:
            scores = batch.batch["token_level_scores"].sum(-1).tolist()
            groups = list(batch.non_tensor_batch["uid"])
            metrics.update(group_metrics(scores, groups, _watch.success_threshold))
        return metrics

    @functools.wraps(own_log)
    def log(self: Any, data: dict[str, Any], step: int, *arguments: Any, **keywords: Any) -> Any:
        if "actor/entropy" in data:
            data.update(collapse_metrics(step, data["actor/entropy"]))
        return own_log(self, data, step, *arguments, **keywords)

    metric_utils.compute_data_metrics = compute_data_metrics
    Tracking.log = log


_watch_metrics()


class _SFTLoss:
    """A loss between verl's forward, which computes it, and verl's ``sft_loss``, which takes it."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self._values: Tensor | None = None

    def patch(self, model: Any) -> None:
        """Replace the forward of a model that verl has loaded."""
        from verl.models.transformers.dense_common import CausalLMOutputForPPO

        from entropyfloor.models.lm_head import head_options, whole_head

        @functools.wraps(type(model).forward)
        def forward(
            model: Any,
            input_ids: Tensor,
            *,
            shift_labels: Tensor | None = None,
            temperature: float = 1.0,
            return_dict: bool = True,
            **inputs: Any,
        ) -> Any:
            hidden = model.base_model(input_ids, **inputs).last_hidden_state
            targets = torch.roll(input_ids, -1, -1) if shift_labels is None else shift_labels
            with whole_head(model.get_output_embeddings()) as (weight, bias):
                statistics: TokenStatistics = linear_token_statistics(
                    hidden,
                    weight,
                    targets,
                    bias=bias,
                    request=self.loss.request,
                    temperature=temperature,
                    **head_options(model.config),
                )
            self._values = self.loss(statistics)
            return CausalLMOutputForPPO(log_probs=statistics.log_prob, entropy=statistics.entropy)

        model.forward = types.MethodType(forward, model)

    def sft_loss(
        self, config: Any, model_output: Any, data: Any, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Verl's ``sft_loss`` with our values in place of minus the log-probabilities."""
        values, self._values = self._values, None
        if values is None:
            raise ValueError(
                "verl computed a step without the loss of entropyfloor's train_with: set "
                "model.use_fused_kernels=true, with which verl takes log-probabilities from the "
                "model's forward, and engine.strategy to fsdp or fsdp2"
            )
        mask = data["loss_mask"]
        lengths = mask.offsets().diff()
        if values.numel() != mask.values().numel():  # rows padded to the longest
            inside = torch.arange(values.shape[-1], device=values.device) < lengths[:, None]
            if values.shape != inside.shape:
                raise ValueError(
                    f"verl's forward returned losses of shape {tuple(values.shape)} for "
                    f"{mask.values().numel()} tokens; sequence parallelism and pad_to_length are "
                    "not supported: set engine.ulysses_sequence_parallel_size=1"
                )
            values = values[inside]
        # The value at a position is of the next token.
        scored = torch.roll(mask.values(), -1, 0).to(torch.bool)
        total = torch.where(scored, values.flatten(), 0).sum()
        return total / data["batch_num_tokens"] * data["dp_size"], {}


def train_with(loss: str | Any = "gem", **options: Any) -> None:
    """Use a loss in verl's SFT trainer, in this process.

    Args:
        loss: a name or an object of `entropyfloor_losses`.
        **options: of a named loss; ``tau`` as a number.

    Raises:
        ValueError: an unknown loss or option, or tau="auto".

    """
    from verl.models.transformers import monkey_patch
    from verl.workers.utils import losses

    loss = loss_by_name(loss, **options) if isinstance(loss, str) else loss
    if needs_calibration(loss):
        raise ValueError(
            "tau='auto' is measured on the training set before the first step, for which verl has "
            "no place; pass a number: train_with('sed', tau=0.9)"
        )
    ours = _SFTLoss(loss)

    def patch_forward_with_backends(model: Any, use_fused_kernels: bool = False, **_: Any) -> None:
        if use_fused_kernels:
            ours.patch(model)

    monkey_patch.patch_forward_with_backends = patch_forward_with_backends
    losses.sft_loss = ours.sft_loss
