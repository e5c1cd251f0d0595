"""``JointGRPOTrainer``: GRPO and SFT in one step, ``RL loss + sft_weight * SFT loss``.

    trainer = JointGRPOTrainer(..., sft_rows=demonstrations, sft_weight=0.1)

trl's GRPOTrainer with one method extended: ``compute_loss`` adds the SFT loss of a few
demonstrations, through the same forward. The sum has one backward pass, so
that accumulation, gradient clipping, mixed precision and ranks see one loss.

    SFT term of one optimizer step   sft_weight * sum over its tokens of -log p / their number

The tokens are those of *all* micro-batches and ranks of the step: every process knows which rows a
step takes (a permutation by seed and epoch) and counts them without asking. The rows follow from
``global_step`` alone, so that a resumed run goes on with the rows that it would have had.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from entropyfloor.models.patch_model import patch_model
from entropyfloor.rl.prompt_rows import PromptRowsTrainer
from entropyfloor.rl.sft_loss_probe import demonstration_rows, encode_demonstrations
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.teacher_forced import Completion, right_padded


class JointGRPOTrainer(PromptRowsTrainer):
    """``trl.GRPOTrainer`` whose every step also learns from demonstrations.

    Args:
        *grpo_args: GRPOTrainer's positional arguments, unchanged.
        sft_rows: demonstrations with ``prompt`` and ``completion``.
        sft_weight: of the SFT loss (nats per token); may be changed while training, as
            ``SFTLossProbe(policy="mix")`` does. At 0 this is PromptRowsTrainer to the last bit.
        sft_batch_size: demonstrations per micro-batch and device.
        **grpo_kwargs: GRPOTrainer's keyword arguments, unchanged.

    Logged beside trl's metrics where the weight is not 0: ``sft_loss_mixed``, nats per token of the
    step's demonstrations.

    Raises:
        ValueError: rows without completion, a negative weight.

    """

    _tag_names = ["trl", "grpo", "entropyfloor"]  # noqa: RUF012 - trl's own convention

    def __init__(
        self,
        *grpo_args: Any,
        sft_rows: PromptSet | Sequence[Mapping[str, Any]],
        sft_weight: float = 0.1,
        sft_batch_size: int = 4,
        **grpo_kwargs: Any,
    ) -> None:
        rows = demonstration_rows(sft_rows, "sft_rows")
        if not 0.0 <= sft_weight < float("inf"):
            raise ValueError(f"sft_weight must be 0 or positive and finite; got {sft_weight}")
        if sft_batch_size < 1:
            raise ValueError(f"sft_batch_size must be at least 1; got {sft_batch_size}")
        super().__init__(*grpo_args, **grpo_kwargs)
        self.sft_weight = sft_weight
        self.sft_batch_size = sft_batch_size
        self._demonstrations = encode_demonstrations(
            rows, self._tokenizer, self.chat_template_kwargs
        )
        patch_model(self.model, "ce").on_labels = False  # GRPO's own calls stay what they are
        self._micro_batch = (-1, 0)  # global step, and how many of its micro-batches are done

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """GRPO's loss of the micro-batch, plus its share of the weighted SFT loss."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training:
            return loss
        step = self.state.global_step
        number = self._micro_batch[1] if self._micro_batch[0] == step else 0
        self._micro_batch = (step, number + 1)
        if not self.sft_weight:
            return loss
        share, tokens = self.sft_share(step)
        nats = self._nats(model, share[number])
        ranks = self.accelerator.num_processes
        done = self.accelerator.reduce(nats.detach().float(), reduction="sum") / tokens
        parts = self.current_gradient_accumulation_steps
        # trl averages what is logged over micro-batches; the step's loss is their sum.
        self._metrics["train"]["sft_loss_mixed"].append(float(done) * parts)
        # Gradients are averaged over ranks, and the loss is not scaled for accumulation again.
        return loss + self.sft_weight * ranks * nats / tokens

    def sft_share(self, step: int) -> tuple[list[list[Completion]], int]:
        """Demonstrations of this rank's micro-batches, and the tokens of all ranks' together."""
        parts, ranks = self.current_gradient_accumulation_steps, self.accelerator.num_processes
        # As many rows per step whatever the last step of an epoch is: rows follow from the step.
        per_step = self.args.gradient_accumulation_steps * ranks * self.sft_batch_size
        rows = [self._row(step * per_step + i) for i in range(parts * ranks * self.sft_batch_size)]
        tokens = sum(len(row.ids) for row in rows)
        size, rank = self.sft_batch_size, self.accelerator.process_index
        starts = [(part * ranks + rank) * size for part in range(parts)]
        return [rows[start : start + size] for start in starts], tokens

    def _row(self, position: int) -> Completion:
        rows = len(self._demonstrations)
        epoch, index = divmod(position, rows)
        return self._demonstrations[int(_order(self.args.seed, epoch, rows)[index])]

    def _nats(self, model: Any, rows: Sequence[Completion]) -> Tensor:
        """Sum of ``-log p`` over the completions' tokens."""
        device = self.accelerator.device
        input_ids, mask = (
            part.to(device) for part in right_padded(rows, self._tokenizer.pad_token_id)
        )
        labels = input_ids.masked_fill(mask == 0, -100)
        for number, row in enumerate(rows):
            labels[number, : len(row.prompt_ids)] = -100
        with self.accelerator.autocast():
            outputs = model(
                input_ids=input_ids, attention_mask=mask, labels=labels, entropyfloor_head=True
            )
        nats: Tensor = outputs.objective
        return nats


@lru_cache(maxsize=2)  # a step can end one epoch and begin the next
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
