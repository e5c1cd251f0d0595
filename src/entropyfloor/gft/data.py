"""GroupRowsTrainer: trl's GRPOTrainer on rows that are prompts with responses.

Each prompt is visited once per epoch, with its whole group on one process (trl repeats prompts and
spreads them); the rows' responses are scored before the first step. What is done with the groups
is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from trl import GRPOTrainer

from entropyfloor.gft.rows import (
    REWARDS_COLUMN,
    TRAINER_COLUMNS,
    RewardFile,
    add_rewards,
    check_rows,
    columns_of,
    encode_completions,
    without_trainer_columns,
)
from entropyfloor.rl.prompt_rows import PromptRows


class GroupRowsTrainer(PromptRows, GRPOTrainer):
    """Data and rewards of `GFTTrainer`."""

    # Set by the classes above, which have no types.
    train_dataset: Any
    eval_dataset: Any
    _signature_columns: Any

    _reward_file: RewardFile | None = None
    _resumed = False  # whether the run goes on from a checkpoint
    _has_rewards = True  # whether there are reward functions

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt", *TRAINER_COLUMNS]

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
        if eval_dataset is None and self.eval_dataset is None:
            raise ValueError("there is no eval_dataset: give the trainer one, or evaluate(rows)")
        if isinstance(eval_dataset, str):
            rows = self._scored(self.eval_dataset[eval_dataset], f"eval_dataset {eval_dataset!r}")
            self.eval_dataset[eval_dataset] = rows
        elif eval_dataset is None or eval_dataset is self.eval_dataset:
            rows = self.eval_dataset = self._scored(self.eval_dataset, "eval_dataset")
        else:
            check_rows(
                eval_dataset,
                self.args,
                num_self=self.num_generations_eval,
                name="eval_dataset",
                has_rewards=self._has_rewards,
            )
            rows = self._scored(eval_dataset, "eval_dataset")
        return super(GRPOTrainer, self).get_eval_dataloader(rows)

    def _scored(self, dataset: Dataset, name: str) -> Dataset:
        """The dataset with numbered rows and the rewards of its responses."""
        if REWARDS_COLUMN in columns_of(dataset):
            return dataset
        accelerator = self.accelerator
        if self._reward_file is None:
            self._reward_file = RewardFile(
                self.args.output_dir, resumed=self._resumed, writes=accelerator.is_main_process
            )
        return add_rewards(
            dataset,
            self._score_responses,
            self.args,
            name=name,
            file=self._reward_file,
            ranks=accelerator.num_processes,
            rank=accelerator.process_index,
            progress=not self.args.disable_tqdm and accelerator.is_main_process,
        )

    def _score_responses(self, rows: list[dict[str, Any]], completions: list[Any]) -> list[float]:
        whole = [self.with_options(row) for row in rows]
        rewards = super()._calculate_rewards(
            [without_trainer_columns(row) for row in rows],
            [row["prompt"] for row in rows],
            completions,
            encode_completions(whole, self.encode_rows(rows), completions, self._tokenizer),
        )
        # What reward functions logged is of no step.
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        totals: list[float] = self._total(rewards).tolist()
        return totals

    def _total(self, rewards: Tensor) -> Tensor:
        """``[n, functions]`` -> ``[n]``: the weighted sum; NaN where no function applied."""
        total = (rewards.double() * self.reward_weights.to(rewards.device).double()).nansum(dim=1)
        return total.masked_fill(torch.isnan(rewards).all(dim=1), math.nan).float()


class EpochSampler(Sampler[int]):
    """Every row once per epoch, in an order by seed and epoch alone: a resumed run keeps it.

    The epoch is asked for, not set: accelerate does not reach a sampler below
    ``skip_first_batches`` with several processes, and a resumed run would visit an epoch in the
    order of the first.

    Args:
        rows: how many there are.
        seed: of the order; None for that of the dataset.
        epoch: tells the current one, when an iteration begins.

    """

    def __init__(self, rows: int, *, seed: int | None, epoch: Callable[[], int]) -> None:
        self._rows, self._seed, self._epoch = rows, seed, epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        if self._seed is None:
            return iter(range(self._rows))
        order = np.random.default_rng((self._seed, self._epoch())).permutation(self._rows)
        return iter(order.tolist())
