"""trl's GRPOTrainer on prompt rows as screening knows them: same token ids, same reward columns.

trl 1.16 decides by the first prompt of a batch whether all of them are conversations, and does not
read the columns ``tools`` and ``chat_template_kwargs``. `PromptRows` renders each row by itself,
with ``entropyfloor.rollouts.rendering``, and gives rewards what ``score_rollouts`` would give them.
Images, callable tools and environments are left to trl.

trl also reads a prompt again for each rollout of its group, twice (to draw it and to learn from
it), pads every row to the longest, goes on computing rows that have ended, and goes backward
through rollouts without an advantage. `SharedPrompts` leaves out that work, which changes nothing:

- rollouts are drawn by screening's engine (``rollouts.decoding``), each from uniforms of its own:
  seeded by (``seed``, step, number), so that a resumed run draws what the run would have drawn;
- log-probabilities and entropies come from one forward of each different prompt, with its keys and
  values, and one of the rollouts after it, sorted by length so that little is padded. The gradient
  goes through both;
- a rollout whose advantage is 0, as all have in a group with equal rewards, goes forward for the
  logged entropy and not backward: its gradient is 0 in every loss type, while there is neither a KL
  term nor an entropy bonus nor a router's loss beside them.

The loss, its gradient and what is logged are trl's up to rounding. What this does not know is left
to trl: vLLM, continuous batching, tools, images, other sampling options, sharded models (drawing);
more than one process, gradient checkpointing, which allows no cache, models that keep more than
keys and values, trl before 1.15 (log-probabilities).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import trl.trainer.utils
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache
from trl import GRPOTrainer

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.models.model_state import evaluating
from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.decoding import (
    RoomyLayer,
    TokenSampler,
    decode,
    reads_keys_and_values,
    rollout_uniforms,
    room_for,
)
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.prompts import ROW_COLUMN, reward_columns, row_with_chat_options
from entropyfloor.rollouts.rendering import encode_row
from entropyfloor.rollouts.rewards import completion_to
from entropyfloor.rollouts.rollouts import until_end

_FUSED = hasattr(trl.trainer.utils, "add_fused_lm_head")  # from 1.15 on
_FEW_TOKENS = 256  # of a forward: fewer do not fill the cores


class SharedPrompts:
    """Comes before trl's class; see the module's docstring."""

    accelerator: Any
    args: Any
    model: Any
    model_wrapped: Any
    state: Any
    _tokenizer: Any
    _without_gradient: Tensor | None = None  # rows of the micro-batch in hand
    _drawn: tuple[int, bool, int] = (-1, True, 0)  # step, in training, how often before

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *rest: Any, **keywords: Any
    ) -> Any:
        if not self._draws_here():
            return super()._generate_single_turn(prompt_ids, *rest, **keywords)  # type: ignore[misc]
        ends = GenerationConfig(
            # Below 1.14 trl knows the tokenizer's alone.
            eos_token_id=getattr(self, "eos_token_ids", [self._tokenizer.eos_token_id]),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        uniforms = self._uniforms(len(prompt_ids))
        sampling = Sampling(
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            top_k=max(0, self.args.top_k or 0),
        )
        model = self.accelerator.unwrap_model(self.model_wrapped)
        policy = LoadedCheckpoint("the policy", "the policy", model, self._tokenizer)
        # In evaluation mode: no dropout, and gradient checkpointing allows the cache.
        with evaluating(model), torch.no_grad(), policy.generating(ends):
            drawn, _ = decode(policy, prompt_ids, uniforms, TokenSampler(sampling))
            rows = [until_end(ids, policy.eos_token_ids)[0] for ids in drawn.tolist()]
        return [list(ids) for ids in rows], None

    def _draws_here(self) -> bool:
        args = self.args
        plain = not (
            args.use_vllm
            or args.use_transformers_continuous_batching
            or self._is_vlm  # type: ignore[attr-defined]
            or self.tools  # type: ignore[attr-defined]
            or args.generation_kwargs
            or args.cache_implementation
            or args.min_p
            or args.repetition_penalty != 1.0
            or getattr(self, "is_fsdp_enabled", False)
            or getattr(self, "is_deepspeed_enabled", False)
        )
        policy = LoadedCheckpoint("the policy", "", self.model, self._tokenizer)
        return plain and reads_keys_and_values(policy)

    def _uniforms(self, rows: int) -> Tensor:
        step, training = int(self.state.global_step), bool(self.model.training)
        number = self._drawn[2] + 1 if self._drawn[:2] == (step, training) else 0
        self._drawn = (step, training, number)
        rank = self.accelerator.process_index
        keys = [(step, int(training), number, rank, row) for row in range(rows)]
        return rollout_uniforms(self.args.seed, keys, self.args.max_completion_length)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._without_gradient = self._rows_without_gradient(inputs["advantages"])
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._without_gradient = None

    def _rows_without_gradient(self, advantages: Tensor) -> Tensor | None:
        """``[rows]`` bool; None where every row has one. One row always has: the loss's graph."""
        others = (
            self.args.beta
            or getattr(self, "_entropy_bonus_enabled", False)
            or getattr(self, "aux_loss_enabled", False)
        )
        if others or advantages.dim() != 1:
            return None
        rows = advantages == 0.0
        if bool(rows.all()):
            rows[0] = False
        return rows if bool(rows.any()) else None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **rest: Any,
    ) -> Any:
        """trl's, for the rows with a gradient and for those without."""
        # Images and the like are tensors; compute_aux_loss is True or False.
        plain = all(value is None or value is False for value in rest.values())
        shortest = attention_mask[:, :-logits_to_keep].sum(dim=1).min()
        if not plain or int(shortest) < 2 or not self._shares_prompts(model):
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                **rest,
            )
        rows = torch.arange(len(input_ids), device=input_ids.device)
        idle = self._without_gradient
        parts = [rows] if idle is None or not torch.is_grad_enabled() else [rows[~idle], rows[idle]]
        values, order = [], []
        for number, part in enumerate(parts):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number == 0):
                for some in part.split(batch_size or len(rows)):
                    values.append(
                        self._statistics(
                            model, input_ids[some], attention_mask[some], logits_to_keep
                        )
                    )
                    order.append(some)
        back = torch.cat(order).argsort()
        log_probs, entropies = (torch.cat(kind)[back] for kind in zip(*values, strict=True))
        return log_probs, entropies if compute_entropy else None, None

    def _shares_prompts(self, model: Any) -> bool:
        whole = self.accelerator.unwrap_model(model)
        policy = LoadedCheckpoint("the policy", "", whole, self._tokenizer)
        inner = policy.inner_model
        cache = room_for(inner, 0) if reads_keys_and_values(policy) else None
        return (
            _FUSED
            and self.accelerator.num_processes == 1
            and not (inner.is_gradient_checkpointing and inner.training)
            and not getattr(inner.config, "output_router_logits", False)
            and cache is not None
            and all(type(layer) is RoomyLayer for layer in cache.layers)  # no sliding window
        )

    def _statistics(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, ``[rows, width]``, of each row's last ``width`` tokens."""
        prompts, which = _different(input_ids[:, :-width], attention_mask[:, :-width])
        lengths = attention_mask[:, -width:].sum(dim=1)
        cache = self._read(model, prompts)
        order, found = [], []
        for rows in _of_similar_length(lengths.tolist()):
            index = torch.tensor(rows, device=input_ids.device)
            longest = max(1, int(lengths[index].max()))
            ids = input_ids[index, -width - 1 :][:, : longest + 1]
            valid = attention_mask[index, -width - 1 :][:, : longest + 1]
            before = prompts[1][which[index], :-1]
            mask = torch.cat([before, valid], dim=1)
            labels = ids.masked_fill(valid == 0, -100)
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=before.sum(dim=1, keepdim=True)
                    + torch.arange(longest + 1, device=ids.device),
                    past_key_values=_rows_of(cache, which[index]),
                    labels=labels,
                    fused_lm_head=True,
                )
            found.append(
                [F.pad(v, (0, width - longest)) for v in (outputs.log_probs, outputs.entropy)]
            )
            order.append(index)
        back = torch.cat(order).argsort()
        log_probs, entropies = (torch.cat(kind)[back] for kind in zip(*found, strict=True))
        return log_probs, entropies

    def _read(self, model: Any, prompts: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each prompt but its last token, layer by layer; with gradient."""
        ids, mask = (part[:, :-1] for part in prompts)
        with self.accelerator.autocast():
            cache = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]


def _rows_of(cache: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> DynamicCache:
    return DynamicCache([(k.index_select(0, rows), v.index_select(0, rows)) for k, v in cache])


def _different(input_ids: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The different rows, ids and mask, without columns that are padding in all; which each is."""
    first = int(mask.any(dim=0).int().argmax())  # padding is on the left
    input_ids, mask = (input_ids * mask)[:, first:], mask[:, first:]
    both = torch.cat([input_ids, mask], dim=1)
    unique, which = both.unique(dim=0, return_inverse=True)
    ids, mask = unique.chunk(2, dim=1)
    return (ids, mask), which


def _of_similar_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in batches, longest first: a quarter of a batch's tokens at most are padding."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches:
            longest = lengths[batches[-1][0]]
            if 4 * lengths[row] >= 3 * longest or longest * len(batches[-1]) < _FEW_TOKENS:
                batches[-1].append(row)
                continue
        batches.append([row])
    return batches


class PromptRows:
    """Comes before trl's class."""

    chat_template_kwargs: dict[str, Any]
    processing_class: Any
    tools: Any
    environment_factories: Any
    _tokenizer: Any
    _is_vlm: bool
    _signature_columns: Any
    _batch: Sequence[Mapping[str, Any]] = ()

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Token ids of the rows' prompts, with the trainer's ``chat_template_kwargs``."""
        return [
            encode_row(self.with_options(row), self._tokenizer, where="the model in training")
            for row in rows
        ]

    def with_options(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the trainer's ``chat_template_kwargs``, which its own go before."""
        return row_with_chat_options(row, chat_template_kwargs=self.chat_template_kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if ROW_COLUMN not in self._signature_columns:
            self._signature_columns.append(ROW_COLUMN)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._batch = inputs
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._is_vlm or self.tools or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)  # type: ignore[misc]
        rows = zip(self._batch, prompts, strict=True)
        return self.encode_rows([{**row, "prompt": prompt} for row, prompt in rows]), None, {}

    def _calculate_rewards(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[Any],
    ) -> Tensor:
        completions = [
            completion
            if isinstance(completion, str) == isinstance(prompt, str)
            else completion_to(prompt, completion_text(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        rewards: Tensor = super()._calculate_rewards(  # type: ignore[misc]
            [reward_columns(row) for row in inputs], prompts, completions, completion_ids_list
        )
        return rewards


class PromptRowsTrainer(SharedPrompts, PromptRows, GRPOTrainer):
    """trl's GRPOTrainer with `PromptRows` and `SharedPrompts`."""
