"""GFTTrainer: group fine-tuning on trl's GRPOTrainer.

    trainer = GFTTrainer(model, reward_funcs, args=GFTConfig(...), train_dataset=rows)

One step:

    rows of a step        ─► own samples (trl: transformers or vLLM), scored (trl)
    + given responses     ─► advantages within each prompt's group
                          ─► one update on  sum of -w A C log p  /  scored tokens of the step

What it overrides: sampling of prompts (each once, with its whole group on one process), the making
of a step's batches, the loss, and the log. Generation, rewards and checkpoints are trl's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from ..models.loss_head import LossHeadOutput, attach_loss_head
from ..screening.prompts import Prompt
from ..screening.rewards import RewardFunction
from .entropy_floor import EntropyFloor
from .floor_in_training import (
    add_to_card,
    attach_floor,
    base_of_term,
    probe_prompts_of,
    restore_floor,
)
from .gft_config import GFTConfig
from .gft_groups import Group, group_counts, set_advantages
from .gft_metrics import (
    GROUP_SUMS,
    TOKEN_SUMS,
    entropy_and_tokens,
    floor_ratios,
    group_vector,
    ratios,
    token_vector,
)
from .gft_responses import Response, collate, given_responses, own_responses
from .gft_reward_file import RewardFile
from .gft_rows import (
    GIVEN_REWARDS,
    OURS,
    ROW,
    check_all_cached,
    check_rows,
    encode_given,
    named_datasets,
    number_rows,
    reward_columns,
)
from .gft_sampler import EpochSampler
from .gft_scoring import add_rewards
from .run_record import write_run_record


class GFTTrainer(GRPOTrainer):
    """Group fine-tuning: imitation weighted by group advantages (GFT, arXiv:2604.14258).

    Args:
        model: model id, local directory, model or PEFT model, as in GRPOTrainer.
        reward_funcs: as in GRPOTrainer; None where every given response carries its reward and
            ``num_self`` is 0.
        args: `GFTConfig`.
        train_dataset: rows with ``prompt``, ``responses`` and the reward functions' columns.
        eval_dataset: the same; evaluation samples and scores groups too.
        processing_class: tokenizer; default: the model's.
        probe_prompts: held-out prompts that the entropy floor is measured on, as in SEDTrainer.
        probe_reward: for pass@1 of these probes, as in SEDTrainer.
        **grpo_kwargs: GRPOTrainer's further keyword arguments, unchanged.

    Logged beside trl's metrics of the own samples (``reward``, ``completions/...``), over
    accumulation steps and processes, for each source S in expert, teacher, other, self:
    ``S/reward`` and ``S/advantage`` (means over responses), ``S/tokens`` (per step),
    ``S/rectified`` (share of tokens), ``S/entropy`` and ``S/nll`` (nats per token, before the
    update); ``groups/degenerate``, ``groups/all_right``, ``groups/all_wrong``, ``groups/of_one``
    (shares of groups), ``groups/size``, ``responses/unscored``.

    Raises:
        ValueError: a bad row, named by its number, before anything is computed; options that GFT's
            loss does not have; tools and environments.

    """

    _tag_names = ["trl", "gft", "entropyfloor"]  # noqa: RUF012 - trl's own convention
    _name = "GFT"
    # Set by the classes above, which have no types.
    train_dataset: Any
    eval_dataset: Any
    _signature_columns: Any

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
        probe_prompts: Sequence[Prompt | dict[str, Any]] | None = None,
        probe_reward: str | RewardFunction | None = None,
        **grpo_kwargs: Any,
    ) -> None:
        if args is None:
            source = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GFTConfig(f"{source.split('/')[-1]}-GFT")
        if not isinstance(args, GFTConfig):
            raise ValueError(
                f"args is {type(args).__name__}; GFTTrainer counts batches in prompts and needs a "
                "GFTConfig"
            )
        for name in ("tools", "environment_factory"):
            if grpo_kwargs.get(name):
                raise ValueError(f"{name} is not supported: a group's responses are single turns")
        for name, dataset, own in named_datasets(train_dataset, eval_dataset, args):
            check_rows(dataset, args, num_self=own, name=name)
            if reward_funcs is None:
                check_all_cached(dataset, args, num_self=own, name=name)
        super().__init__(
            model,
            _no_reward if reward_funcs is None else reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            **grpo_kwargs,
        )
        if self._is_vlm:
            raise ValueError("images are not supported: groups are made of text")
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        frozen = base_of_term(self, args)
        self._head = attach_loss_head(base, args.build_loss())
        self.floor: EntropyFloor | None = None
        if args.entropy_floor is not None:
            self.floor = attach_floor(
                self,
                self._head,
                args,
                base=frozen,
                prompts=probe_prompts_of(args, probe_prompts, eval_dataset, train_dataset),
                reward=probe_reward,
            )
        self._sums: dict[str, dict[str, float]] = {"train": {}, "eval": {}}
        self._steps_summed = {"train": 0, "eval": 0}
        self._micro_batches: list[list[dict[str, Any]]] = []
        self._built: Iterator[dict[str, Any]] | None = None
        self._own_rewards: Tensor | None = None
        self._reward_file: RewardFile | None = None
        self._resumed = False

    # Prompts: each once, with its group on one process.

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt", *OURS]

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(
            len(self.train_dataset if dataset is None else dataset),
            seed=seed if self.shuffle_dataset else None,
            epoch=lambda: int((self.state.epoch or 0.0) + 1e-6),
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's: micro-batches of ``per_device_train_batch_size`` prompts."""
        self.train_dataset = self._scored(self.train_dataset, "train_dataset")
        return super(GRPOTrainer, self).get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Trainer's, on scored rows."""
        if isinstance(eval_dataset, str):
            found = self._scored(self.eval_dataset[eval_dataset], f"eval_dataset {eval_dataset!r}")
            self.eval_dataset[eval_dataset] = found
        elif eval_dataset is None or eval_dataset is self.eval_dataset:
            found = self.eval_dataset = self._scored(self.eval_dataset, "eval_dataset")
        else:
            own = self.num_generations_eval
            check_rows(eval_dataset, self.args, num_self=own, name="eval_dataset")
            found = self._scored(eval_dataset, "eval_dataset")
        return super(GRPOTrainer, self).get_eval_dataloader(found)

    def _scored(self, dataset: Dataset, name: str) -> Dataset:
        """The dataset with numbered rows and the rewards of its given responses."""
        if GIVEN_REWARDS in dataset.column_names:
            return dataset
        accelerator = self.accelerator
        if self._reward_file is None:
            self._reward_file = RewardFile(
                self.args.output_dir, resumed=self._resumed, writes=accelerator.is_main_process
            )
        return add_rewards(
            number_rows(dataset),
            self._score_given,
            self.args,
            name=name,
            file=self._reward_file,
            ranks=accelerator.num_processes,
            rank=accelerator.process_index,
            progress=not self.args.disable_tqdm and accelerator.is_main_process,
        )

    def _score_given(self, rows: list[dict[str, Any]], completions: list[Any]) -> list[float]:
        prompts = [row["prompt"] for row in rows]
        prompt_ids = self._tokenize_prompts(prompts)[0]
        rewards = super()._calculate_rewards(
            [reward_columns(row) for row in rows],
            prompts,
            completions,
            encode_given(prompts, prompt_ids, completions, self._tokenizer),
        )
        # What reward functions logged is of no step.
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        found: list[float] = self._total(rewards).tolist()
        return found

    def _total(self, rewards: Tensor) -> Tensor:
        """``[n, functions]`` -> ``[n]``: the weighted sum; NaN where no function applied."""
        total = (rewards.double() * self.reward_weights.to(rewards.device).double()).nansum(dim=1)
        return total.masked_fill(torch.isnan(rewards).all(dim=1), math.nan).float()

    # One step's batches.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Keep the rows of a whole step: own samples are drawn for all of them at once."""
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
        own = self._own_samples(rows, mode)
        prompt_ids = self._tokenize_prompts([row["prompt"] for row in rows])[0]
        step = self.state.global_step if mode == "train" else 0
        groups = []
        for row, prefix, samples in zip(rows, prompt_ids, own, strict=True):
            given = given_responses(
                row, prefix, self._tokenizer, args.response_counts(), seed=args.seed, step=step
            )
            groups.append(Group(row[ROW], given + samples))
        deviation = self._batch_deviation(groups) if args.scale_rewards == "batch" else None
        set_advantages(groups, args, batch_deviation=deviation)
        taken = [r for group in groups for r in group.responses if r.taken]
        given_tokens = sum(len(r.prompt_ids) + len(r.ids) for r in taken if r.source != "self")
        counts = torch.cat(
            [
                group_vector(group_counts(groups, args.success_threshold)),
                torch.tensor([sum(r.num_scored for r in taken), given_tokens], dtype=torch.float64),
            ]
        )
        totals = self._sum_over_processes(counts).tolist()
        self._add(mode, GROUP_SUMS, totals[: len(GROUP_SUMS)])
        self._steps_summed[mode] += 1
        if mode == "train":  # trl has counted the own samples
            self.state.num_input_tokens_seen += int(totals[-1])
            self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        built, start = [], 0
        for batch in micro_batches:
            responses = [r for g in groups[start : start + len(batch)] for r in g.responses]
            tensors: dict[str, Any] = collate(
                responses,
                pad_token_id=self._tokenizer.pad_token_id,
                weights=args.source_weights(),
                dtype=torch.float64 if self.model.dtype == torch.float64 else torch.float32,
            )
            tensors = {name: value.to(self.args.device) for name, value in tensors.items()}
            built.append(tensors | {"num_items": totals[-2]})
            start += len(batch)
        return built

    def _own_samples(self, rows: list[dict[str, Any]], mode: str) -> list[list[Response]]:
        count = self.num_generations if mode == "train" else self.num_generations_eval
        if not count:
            return [[] for _ in rows]
        repeated = [reward_columns(row) for row in rows for _ in range(count)]
        found = self._generate_and_score_completions(repeated)
        # Of the own samples alone, while a group has given responses too: see groups/degenerate.
        self._metrics[mode].pop("frac_reward_zero_std", None)
        assert self._own_rewards is not None
        first = self.accelerator.process_index * len(repeated)
        rewards = self._own_rewards[first : first + len(repeated)].tolist()
        return own_responses(found, rewards, count)

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args)
        self._own_rewards = self._total(rewards)
        return rewards

    def _batch_deviation(self, groups: Sequence[Group]) -> float:
        """Standard deviation of all rewards of the step."""
        values = torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float64)
        count = torch.tensor([float(len(values)), float(values.sum())], dtype=torch.float64)
        number, total = self._sum_over_processes(count).tolist()
        squares = (values - total / max(number, 1.0)).square().sum().reshape(1)
        return math.sqrt(
            float(self._sum_over_processes(squares)) / max(number - self.args.advantage_ddof, 1.0)
        )

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        wide = torch.float32 if self.args.device.type == "mps" else torch.float64
        found: Tensor = self.accelerator.reduce(values.to(self.args.device, wide), reduction="sum")
        return found

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
            fused_lm_head=True,
            **routed,
        )
        assert output.log_probs is not None
        # Gradients are averaged over processes, and this is a sum over them.
        loss = -output.log_probs * self.accelerator.num_processes / max(inputs["num_items"], 1.0)
        if self.aux_loss_enabled:
            assert output.aux_loss is not None
            parts = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / parts
            aux_loss = self.accelerator.gather(output.aux_loss.detach()).mean()
            self._metrics[mode]["aux_loss"].append(float(aux_loss))
        tau = self.args.build_loss().tau
        local = token_vector(output, inputs["sources"], inputs["labels"], tau)
        sums = self._add(mode, TOKEN_SUMS, self._sum_over_processes(local).tolist())
        if self.floor is not None and mode == "train":
            self.floor.observe(*entropy_and_tokens(sums))
        return loss

    def _add(self, mode: str, names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
        new = dict(zip(names, values, strict=True))
        sums = self._sums[mode]
        sums.update({name: sums.get(name, 0.0) + value for name, value in new.items()})
        return new

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics, each a ratio of sums since the last log."""
        mode = "train" if self.model.training else "eval"
        if self._steps_summed[mode]:
            found = ratios(self._sums[mode], self._steps_summed[mode])
            if self.floor is not None and mode == "train":
                found |= floor_ratios(self._sums[mode]) | self.floor.logs()
            self._metrics[mode].update({name: [value] for name, value in found.items()})
            self._sums[mode], self._steps_summed[mode] = {}, 0
        super().log(logs, start_time)

    # Checkpoints.

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train as GRPOTrainer does; on resume the entropy floor goes on from the checkpoint."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        self._resumed = bool(checkpoint)
        if isinstance(checkpoint, str | Path) and self.floor is not None:
            restore_floor(self.floor, checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of trl, and the entropy of rollouts the model was last measured with."""
        super().create_model_card(*args, **kwargs)
        add_to_card(self, self.floor)

    # Checkpoints and final models alike go through `_save`.
    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        floor = None if self.floor is None else self.floor.record()
        write_run_record(Path(output_dir or self.args.output_dir), self._head.loss, floor)


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    raise AssertionError("every reward was said to be there")
