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
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from entropyfloor_losses import IGNORE_INDEX

from ..models.loss_head import LossHeadOutput, attach_loss_head
from .gft_config import GFTConfig
from .gft_groups import Group, Response, collate, group_counts, set_advantages
from .gft_metrics import GROUP_SUMS, TOKEN_SUMS, group_vector, ratios, token_vector
from .gft_rows import (
    GIVEN_REWARDS,
    OURS,
    ROW,
    add_rewards,
    check_rows,
    draw,
    encode_given,
    number_rows,
    reward_columns,
)
from .gft_sampler import EpochSampler

_SCORED_AT_ONCE = 64  # given responses per call of the reward functions and process


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
    _paper: dict[str, str] = {}  # noqa: RUF012 - not GRPO's, which the model card would cite

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
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
        for name, dataset, own in _named(train_dataset, eval_dataset, args):
            check_rows(dataset, args, num_self=own, name=name)
            if reward_funcs is None:
                _check_cached(dataset, args, own, name)
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
        self._head = attach_loss_head(base, args.build_loss())
        self._sums: dict[str, dict[str, float]] = {"train": {}, "eval": {}}
        self._steps_summed = {"train": 0, "eval": 0}
        self._micro_batches: list[list[dict[str, Any]]] = []
        self._built: Iterator[dict[str, Any]] | None = None
        self._own_rewards: Tensor | None = None

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
        return add_rewards(number_rows(dataset), self._score_given, self.args, name=name)

    def _score_given(self, dataset: Dataset, pairs: list[tuple[int, int]]) -> list[float]:
        """Rewards of given responses, the work split over processes; the same on every one."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        found: list[float] = []
        at_once = _SCORED_AT_ONCE * ranks
        for start in tqdm(
            range(0, len(pairs), at_once),
            desc="Scoring given responses",
            disable=self.args.disable_tqdm or not self.accelerator.is_main_process,
        ):
            part = pairs[start : start + at_once]
            share = math.ceil(len(part) / ranks)
            # trl gathers rewards, so that every process must score as many: the last ones again.
            padded = part + part[-1:] * (share * ranks - len(part))
            own = padded[rank * share : (rank + 1) * share]
            rows = [dataset[index] for index, _ in own]
            prompts = [row["prompt"] for row in rows]
            completions = [
                row["responses"][n]["completion"] for row, (_, n) in zip(rows, own, strict=True)
            ]
            prompt_ids = self._tokenize_prompts(prompts)[0]
            rewards = super()._calculate_rewards(
                [reward_columns(row) for row in rows],
                prompts,
                completions,
                encode_given(prompts, prompt_ids, completions, self._tokenizer),
            )
            found.extend(self._total(rewards)[: len(part)].tolist())
        # What reward functions logged is of no step.
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
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
        given = self._given(rows, self.state.global_step if mode == "train" else 0)
        groups = [
            Group(row[ROW], theirs + ours)
            for row, theirs, ours in zip(rows, given, own, strict=True)
        ]
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
            tensors: dict[str, Any] = collate(
                groups[start : start + len(batch)],
                pad_token_id=self._tokenizer.pad_token_id,
                weights=args.source_weights(),
            )
            tensors = {name: value.to(self.args.device) for name, value in tensors.items()}
            built.append(tensors | {"num_items": totals[-2]})
            start += len(batch)
        return built

    def _given(self, rows: list[dict[str, Any]], step: int) -> list[list[Response]]:
        prompt_ids = self._tokenize_prompts([row["prompt"] for row in rows])[0]
        found: list[list[Response]] = []
        for row, prefix in zip(rows, prompt_ids, strict=True):
            if not prefix:
                raise ValueError(f"row {row[ROW]}: the tokenizer turns the prompt into no tokens")
            drawn = draw(row, self.args.response_counts(), seed=self.args.seed, step=step)
            completions = [row["responses"][n]["completion"] for n in drawn]
            ids = encode_given(
                [row["prompt"]] * len(drawn), [prefix] * len(drawn), completions, self._tokenizer
            )
            found.append(
                [
                    Response(row["responses"][n]["source"], prefix, own, row[GIVEN_REWARDS][n])
                    for n, own in zip(drawn, ids, strict=True)
                ]
            )
        return found

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
        prompts = _unpad(found["prompt_ids"], found["prompt_mask"])
        completions = _unpad(found["completion_ids"], found["completion_mask"])
        masks: list[list[bool] | None] = [None] * len(repeated)
        if "tool_mask" in found:
            kept = _unpad(found["tool_mask"], found["completion_mask"])
            masks = [[bool(value) for value in mask] for mask in kept]
        responses = [
            Response("self", *fields)
            for fields in zip(prompts, completions, rewards, masks, strict=True)
        ]
        return [responses[start : start + count] for start in range(0, len(responses), count)]

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
        self._add_tokens(mode, inputs, output)
        return loss

    def _add_tokens(self, mode: str, inputs: dict[str, Any], output: LossHeadOutput) -> None:
        assert output.entropy is not None and output.token_log_probs is not None
        assert output.selected is not None
        mask = inputs["labels"][:, 1:] != IGNORE_INDEX
        local = token_vector(
            inputs["sources"], mask, output.selected, output.entropy, output.token_log_probs
        )
        self._add(mode, TOKEN_SUMS, self._sum_over_processes(local).tolist())

    def _add(self, mode: str, names: Sequence[str], values: Sequence[float]) -> None:
        sums = self._sums[mode]
        for name, value in zip(names, values, strict=True):
            sums[name] = sums.get(name, 0.0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics, each a ratio of sums since the last log."""
        mode = "train" if self.model.training else "eval"
        if self._steps_summed[mode]:
            for name, value in ratios(self._sums[mode], self._steps_summed[mode]).items():
                self._metrics[mode][name] = [value]
            self._sums[mode], self._steps_summed[mode] = {}, 0
        super().log(logs, start_time)


def _named(train: Any, evaluation: Any, args: GFTConfig) -> Iterator[tuple[str, Any, int]]:
    """(name, dataset, own samples per prompt) of all datasets."""
    yield "train_dataset", train, args.num_self
    own = args.num_generations_eval or args.num_self
    if isinstance(evaluation, dict):
        yield from ((f"eval_dataset {key!r}", found, own) for key, found in evaluation.items())
    elif evaluation is not None:
        yield "eval_dataset", evaluation, own


def _check_cached(dataset: Any, args: GFTConfig, num_self: int, name: str) -> None:
    counts = args.response_counts()
    for index, row in enumerate(dataset.select_columns(["responses"]) if not num_self else [{}]):
        used = [r for r in row.get("responses") or [] if counts[r["source"]]]
        if num_self or any(response.get("reward") is None for response in used):
            what = "own samples" if num_self else f"{name}, row {index}"
            raise ValueError(
                f"no reward_funcs are given and {what} cannot be scored without; pass them, or "
                "num_self=0 and rows whose responses all carry a reward"
            )


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    raise AssertionError("every reward was said to be there")


def _unpad(values: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of ``values`` where ``mask`` is set, as lists."""
    pairs = zip(values.cpu(), mask.bool().cpu(), strict=True)
    return [row[kept].tolist() for row, kept in pairs]
