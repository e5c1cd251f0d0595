"""GFTTrainer: group fine-tuning on trl's GRPOTrainer.

    trainer = GFTTrainer(model, reward_funcs, args=GFTConfig(...), train_dataset=rows)

One step:

    rows of a step        ─► policy samples (trl: transformers or vLLM), scored (trl)
    + those of the rows   ─► advantages within each prompt's group
                          ─► one update on  sum of -w A C log p  /  scored tokens of the step

What it overrides: sampling of prompts (each once, with its whole group on one process), the making
of a step's batches, the loss, and the log. Generation, rewards and checkpoints are trl's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from entropyfloor.gft.config import GFTConfig
from entropyfloor.gft.data import GroupRowsTrainer
from entropyfloor.gft.groups import collate, dataset_group, policy_samples, set_advantages
from entropyfloor.gft.metrics import (
    GROUP_SUMS,
    TOKEN_SUMS,
    entropy_and_tokens,
    group_sums,
    ratios,
    token_sums,
)
from entropyfloor.gft.responses import Response
from entropyfloor.gft.rows import check_rows, without_trainer_columns
from entropyfloor.models.loss_head import LossHeadOutput
from entropyfloor.models.ranks import summed, wide_dtype
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.floor.floored_trainer import FlooredTrainer, default_output_dir
from entropyfloor.stats.groups import shaping_is_larger_part

logger = logging.get_logger(__name__)


class GFTTrainer(FlooredTrainer, GroupRowsTrainer):
    """Group fine-tuning: imitation weighted by group advantages (GFT, arXiv:2604.14258).

    Args:
        model: model id, local directory, model or PEFT model, as in GRPOTrainer.
        reward_funcs: as in GRPOTrainer; None where every response carries its reward and
            ``num_self`` is 0.
        args: `GFTConfig`.
        train_dataset: rows with ``prompt``, ``responses`` and the reward functions' columns.
        eval_dataset: the same; evaluation samples and scores groups too.
        processing_class: tokenizer; default: the model's.
        probe_prompts: held-out prompts that the entropy floor is measured on, as in SEDTrainer.
        probe_reward: for pass@1 of these probes, as in SEDTrainer.
        **grpo_kwargs: GRPOTrainer's further keyword arguments, unchanged.

    Logged beside trl's metrics of the policy samples (``reward``, ``completions/...``), over
    accumulation steps and processes, for each source S in expert, teacher, other, self:
    ``S/reward`` and ``S/advantage`` (means over responses), ``S/tokens`` (per step),
    ``S/rectified`` (share of tokens), ``S/entropy`` and ``S/nll`` (nats per token, before the
    update); ``groups/degenerate``, ``groups/all_right``, ``groups/all_wrong``, ``groups/of_one``,
    ``groups/outcome_degenerate`` (shares of groups; the last all pass or all fail while their
    rewards differ), ``groups/size``, ``responses/unscored``.

    Raises:
        ValueError: a bad row, named by its number, before anything is computed; options that GFT's
            loss does not have; tools and environments.

    """

    _tag_names = ["trl", "gft", "entropyfloor"]  # noqa: RUF012 - trl's own convention
    _name = "GFT"
    _paper: dict[str, str] = {}  # noqa: RUF012 - not GRPO's, which the model card would cite

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        *,
        probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None = None,
        probe_reward: str | RewardFunction | None = None,
        **grpo_kwargs: Any,
    ) -> None:
        if args is None:
            args = GFTConfig(default_output_dir(model, "GFT"))
        if not isinstance(args, GFTConfig):
            raise ValueError(
                f"args is {type(args).__name__}; GFTTrainer counts batches in prompts and needs a "
                "GFTConfig"
            )
        for name in ("tools", "environment_factory"):
            if grpo_kwargs.get(name):
                raise ValueError(f"{name} is not supported: a group's responses are single turns")
        num_self_eval = args.num_generations_eval or args.num_self
        datasets = [("train_dataset", train_dataset, args.num_self)]
        if isinstance(eval_dataset, dict):
            datasets += [
                (f"eval_dataset {key!r}", rows, num_self_eval) for key, rows in eval_dataset.items()
            ]
        elif eval_dataset is not None:
            datasets.append(("eval_dataset", eval_dataset, num_self_eval))
        self._has_rewards = reward_funcs is not None
        for name, rows, num_self in datasets:
            check_rows(rows, args, num_self=num_self, name=name, has_rewards=self._has_rewards)
        per_step = args.steps_per_generation
        try:
            # trl derives vLLM's batch from this and prompts per micro-batch: it counts rollouts.
            args.steps_per_generation = per_step * max(1, args.num_self)
            super().__init__(
                model,
                _no_reward if reward_funcs is None else reward_funcs,
                args,
                train_dataset,
                eval_dataset,
                processing_class,
                **grpo_kwargs,
            )
        finally:
            args.steps_per_generation = per_step
        if self._is_vlm:
            raise ValueError("images are not supported: groups are made of text")
        routed = getattr(self.model.config.get_text_config(), "output_router_logits", False)
        if routed and args.num_self and not args.use_vllm:
            raise ValueError(
                "the model's config has output_router_logits=True, with which transformers 5.23 "
                "cannot generate (its balancing loss does not fit a single token). Set it to "
                "False: that loss is computed in training nevertheless"
            )
        self._patch(
            args.build_loss(),
            probe_prompts=probe_prompts,
            probe_reward=probe_reward,
            datasets=(eval_dataset, train_dataset),
        )
        # GRPOTrainer calls the model for log-probabilities too.
        self._head.on_labels, self._callback.reads_head = False, False
        self._sums: dict[str, dict[str, float]] = {"train": {}, "eval": {}}
        self._micro_batches: list[list[dict[str, Any]]] = []
        self._built: Iterator[dict[str, Any]] | None = None
        self._policy_rewards: Tensor | None = None

    # One step's batches.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Keep the rows of a whole step: policy samples are drawn for all of them at once."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches, self._built = batches, None
        return batches, None

    def _prepare_inputs(self, inputs: Any) -> Any:
        # Not in get_batch_samples: a resumed run restores the random state after that.
        if not self.model.training:
            return self._build([inputs])[0]
        if self._built is None:
            started = time.perf_counter()
            self._built = iter(self._build(self._micro_batches))
            self._current_train_step_time += time.perf_counter() - started
        return next(self._built)

    def _build(self, micro_batches: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        args, mode = self.args, "train" if self.model.training else "eval"
        rows = [row for batch in micro_batches for row in batch]
        groups = []
        for row, prompt_ids, samples in zip(
            rows, self.encode_rows(rows), self._policy_samples(rows, mode), strict=True
        ):
            group = dataset_group(
                self.with_options(row),
                prompt_ids,
                self._tokenizer,
                args.response_counts(),
                seed=args.seed,
                step=self.state.global_step if mode == "train" else 0,
            )
            group.responses += samples
            groups.append(group)
        set_advantages(groups, args, add_up=self._sum_over_processes)
        self._correct_table(
            [r.advantage for group in groups for r in group.responses if r.source == "self"]
        )
        totals = self._sum_over_processes(group_sums(groups, args.success_threshold)).tolist()
        sums = dict(zip(GROUP_SUMS, totals, strict=True))
        self._add(mode, {"steps": 1.0, **sums})
        if mode == "train":  # trl has counted the policy samples
            self.state.num_input_tokens_seen += int(sums["dataset_tokens"])
            self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        inputs, first = [], 0
        for batch in micro_batches:
            tensors = collate(
                groups[first : first + len(batch)],
                pad_token_id=self._tokenizer.pad_token_id,
                weights=args.source_weights(),
                dtype=torch.float64 if self.model.dtype == torch.float64 else torch.float32,
            )
            on_device = {name: value.to(args.device) for name, value in tensors.items()}
            inputs.append(on_device | {"num_items": sums["loss_tokens"]})
            first += len(batch)
        return inputs

    def _policy_samples(self, rows: list[dict[str, Any]], mode: str) -> list[list[Response]]:
        count = self.num_generations if mode == "train" else self.num_generations_eval
        if not count:
            return [[] for _ in rows]
        repeated = [without_trainer_columns(row) for row in rows for _ in range(count)]
        batch = self._generate_and_score_completions(repeated)
        # Of the policy samples alone, while a group has others too: see groups/degenerate.
        self._metrics[mode].pop("frac_reward_zero_std", None)
        assert self._policy_rewards is not None
        first = self.accelerator.process_index * len(repeated)
        rewards = self._policy_rewards[first : first + len(repeated)].tolist()
        return policy_samples(batch, rewards, count)

    def _correct_table(self, advantages: list[float]) -> None:
        """``log_completions``: the advantages used, not those among the policy samples alone."""
        if not self.args.log_completions:
            return
        table, gathered = self._logs["advantages"], gather_object(advantages)
        for _ in range(min(len(gathered), len(table))):
            table.pop()
        table.extend(gathered)

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args)
        self._policy_rewards = self._total(rewards)
        return rewards

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        device = self.args.device
        return summed(values.to(device, wide_dtype(device)))

    # The loss.

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the objective over the micro-batch, by the scored tokens of the whole step."""
        if return_outputs:
            raise ValueError("GFTTrainer does not return outputs")
        mode = "train" if self.model.training else "eval"
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output: LossHeadOutput = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            advantages=inputs["advantages"],
            entropyfloor_head=True,
            **routed,
        )
        # Gradients are averaged over processes, and this is a sum over them.
        loss = output.objective * self.accelerator.num_processes / max(inputs["num_items"], 1.0)
        if self.aux_loss_enabled:
            assert output.aux_loss is not None
            parts = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / parts
            aux_loss = self.accelerator.gather(output.aux_loss.detach()).mean()
            self._metrics[mode]["aux_loss"].append(float(aux_loss))
        tau = self.args.build_loss().tau
        local = token_sums(output, inputs["sources"], tau)
        sums = dict(zip(TOKEN_SUMS, self._sum_over_processes(local).tolist(), strict=True))
        self._add(mode, sums)
        if tokens := sums["self/tokens"]:  # what trl logs of it, and a CollapseMonitor reads
            self._metrics[mode]["entropy"].append(sums["self/entropy"] / tokens)
        if self.floor is not None and mode == "train":
            self.floor.observe(*entropy_and_tokens(sums))
        return loss

    def _add(self, mode: str, new: dict[str, float]) -> None:
        sums = self._sums[mode]
        sums.update({name: sums.get(name, 0.0) + value for name, value in new.items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics, each a ratio of sums since the last log."""
        mode = "train" if self.model.training else "eval"
        if sums := self._sums[mode]:
            self._sums[mode] = {}
            self._metrics[mode].update({name: [value] for name, value in ratios(sums).items()})
            self._warn_of_shaping(sums)
        super().log(logs, start_time)

    def _warn_of_shaping(self, sums: dict[str, float]) -> None:
        """Once, over one log's groups: most of those with a gradient all pass or all fail."""
        differ = sums.get("groups", 0.0) - sums.get("degenerate", 0.0)
        if differ and shaping_is_larger_part(sums["outcome_degenerate"], differ):
            logger.warning_once(
                "Most groups whose rewards differ all pass or all fail (groups/outcome_degenerate):"
                " what they teach comes from shaped rewards and says nothing about passing"
            )

    # Checkpoints.

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train as GRPOTrainer does; on resume the entropy floor goes on from the checkpoint."""
        self._resumed = self._checkpoint_of(resume_from_checkpoint) is not None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    raise AssertionError("every reward was said to be there")
