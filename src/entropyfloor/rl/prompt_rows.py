"""trl's GRPOTrainer on prompt rows as screening knows them: same token ids, same reward columns.

trl 1.16 decides by the first prompt of a batch whether all of them are conversations, and does not
read the columns ``tools`` and ``chat_template_kwargs``. `PromptRows` renders each row by itself,
with ``entropyfloor.rollouts.rendering``, and gives rewards what ``score_rollouts`` would give them.
Images, callable tools and environments are left to trl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from trl import GRPOTrainer

from entropyfloor.rl.shared_prompts import SharedPrompts
from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.prompts import ROW_COLUMN, reward_columns, row_with_chat_options
from entropyfloor.rollouts.rendering import encode_row
from entropyfloor.rollouts.rewards import completion_to


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
