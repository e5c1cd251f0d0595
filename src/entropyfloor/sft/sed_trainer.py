"""SEDTrainer: trl's SFTTrainer with an entropy-preserving loss. Change one line, keep everything.

    trainer = SEDTrainer(model, args=SEDConfig(...), train_dataset=data)          # SED by default
    trainer = SEDTrainer(model, args=SFTConfig(...), train_dataset=data, loss="gem")

It is trl's SFTTrainer with `patch_model` and `EntropyFloorCallback`, which any trainer can have,
and a ``compute_loss`` on the contract of ``transformers.Trainer``. Data, collation, packing, PEFT,
accumulation and checkpoints are trl's. On versions that were not tested cross-entropy is compared
with SFTTrainer's before the first step.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments
from trl import SFTTrainer

from entropyfloor.models.loss_head import LossHeadOutput
from entropyfloor.models.patch_model import choose_loss
from entropyfloor.models.ranks import wide_dtype
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.calibration import calibrate
from entropyfloor.sft.floor.building import refuse_what_drops_the_loss
from entropyfloor.sft.floor.documents import DocumentCollator
from entropyfloor.sft.floor.floor import warn
from entropyfloor.sft.floor.floored_trainer import FlooredTrainer, default_output_dir
from entropyfloor.sft.floor.held_out import hold_out
from entropyfloor.sft.loss_reference import weighs_by_reference, with_step_weights
from entropyfloor.sft.sed_config import SEDConfig
from entropyfloor.sft.training_rows import check_metric_for_best_model, check_rows_left
from entropyfloor.sft.trl_agreement import check_agreement, refuse_what_trl_cannot
from entropyfloor_losses import TokenStatistics, needs_calibration, token_mean

Loss = Callable[[TokenStatistics], Tensor]


class SEDTrainer(FlooredTrainer, SFTTrainer):
    """`trl.SFTTrainer` with the loss of your choice, on a head that never builds the logits.

    Args:
        model: model id, local directory, model or PEFT model, as in SFTTrainer.
        args: `SEDConfig`; an ``SFTConfig`` or ``TrainingArguments`` is converted.
        *sft_args: SFTTrainer's further positional arguments, unchanged.
        loss: replaces ``args.loss``: a name, an object of `entropyfloor_losses`, or any callable
            that maps `TokenStatistics` of n tokens to ``[n]`` values token by token.
        probe_prompts: held-out prompts (a ``PromptSet``, strings, conversations, or rows with
            ``prompt`` and the reward's columns) whose rollouts the entropy floor is measured on;
            default: the evaluation set's, else the training set's.
        probe_reward: a reward by name or in trl's signature: probes then measure pass@1 too.
        **sft_kwargs: SFTTrainer's keyword arguments, unchanged.

    Logged beside trl's metrics, token-weighted over accumulation steps and ranks: ``ce`` (nats per
    token), ``penalty`` (objective minus CE), ``selected_fraction`` (tokens the loss treats other
    than CE does) and ``top_k_mass``. Evaluation uses the same loss.

    Raises:
        ValueError: a bad loss or option, or a setting that would silently drop the loss:
            ``compute_loss_func``, ``label_smoothing_factor``, ``loss_type``, DeepSpeed sequence
            parallelism, adapters on the head.

    """

    _tag_names = ["trl", "sft", "entropyfloor"]  # noqa: RUF012 - trl's own convention
    _name = "SED"
    data_collator: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: TrainingArguments | None = None,
        *sft_args: Any,
        loss: str | Loss | None = None,
        probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None = None,
        probe_reward: str | RewardFunction | None = None,
        **sft_kwargs: Any,
    ) -> None:
        if args is None:
            args = SEDConfig(default_output_dir(model, "SED"))
        elif not isinstance(args, SEDConfig):
            args = SEDConfig.from_arguments(args)
        args.refuse_what_replaces_the_loss()  # fields may have been assigned since it was built
        chosen = args.build_loss() if loss is None else choose_loss(loss, args.loss_options())
        # By name, whichever way they were passed.
        signature = inspect.signature(SFTTrainer.__init__)
        bound = signature.bind(self, model, args, *sft_args, **sft_kwargs)
        arguments = bound.arguments
        if arguments.get("compute_loss_func"):
            raise ValueError(
                "compute_loss_func would replace the chosen loss. Pass your own per-token loss as "
                "SEDTrainer(loss=...), a callable on TokenStatistics, or use trl's SFTTrainer"
            )
        self._eval_prefix = "eval"
        self._agreed = False
        # As given: SFTTrainer replaces them by tokenised ones.
        train_data, eval_data = arguments.get("train_dataset"), arguments.get("eval_dataset")
        check_metric_for_best_model(args, eval_data)
        if args.reads_data and eval_data is None and train_data is not None:
            train_data, eval_data = hold_out(train_data, args.floor_held_out_rows)
            arguments |= {"train_dataset": train_data, "eval_dataset": eval_data}
            warn(
                f"entropy_floor='auto': {len(eval_data)} rows of the training set are held out, as "
                "there is no evaluation set; they are the trainer's eval_dataset"
            )
        super().__init__(*bound.args[1:], **bound.kwargs)
        refuse_what_drops_the_loss(self)
        check_rows_left(train_data, self.train_dataset, args, "train_dataset")
        check_rows_left(eval_data, self.eval_dataset, args, "eval_dataset")
        refuse_what_trl_cannot(self)
        self._patch(
            chosen,
            probe_prompts=probe_prompts,
            probe_reward=probe_reward,
            datasets=(eval_data, train_data),
        )

    @property
    def loss(self) -> Loss:
        """The loss in force; after calibration its ``tau`` is a number."""
        return self._head.loss

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; on resume, a calibrated tau comes from the checkpoint."""
        assert self._callback.reference is not None
        resumed = self._checkpoint_of(resume_from_checkpoint) is not None
        self._callback.reference.begin(self, resumed=resumed)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> Any:
        """SFTTrainer's; rows of a cached reference are looked up before they leave the host."""
        collate = self.data_collator
        if self.args.reference_cache is not None or weighs_by_reference(self.loss):
            self.data_collator = DocumentCollator(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step; with their weights, where the loss ranks its sequences."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        return with_step_weights(self, self._head, batches), count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective by the tokens of the whole batch, and trl's metrics.

        The contract is that of ``transformers.Trainer``: ``num_items_in_batch`` counts the tokens
        of every process and accumulation step, gradients are averaged over processes.
        """
        if needs_calibration(self.loss):
            self.calibrate(model)
        if self.model.training and not self._agreed:
            check_agreement(self, model)
            self._agreed = True
        inputs = {**inputs, "use_cache": False}
        if self.aux_loss_enabled:  # multimodal wrappers heed it as an argument only
            inputs["output_router_logits"] = True
        outputs: LossHeadOutput = model(**inputs, entropyfloor_head=True)
        counted = outputs.scored.sum() if num_items_in_batch is None else num_items_in_batch
        loss = token_mean(outputs.objective, counted)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if self.aux_loss_enabled:
            # A mean per micro-batch: with a count Trainer leaves accumulation to this method.
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            weight = self.model.config.get_text_config().router_aux_loss_coef
            loss = loss + weight * outputs.aux_loss / parts
        self._add_trls_metrics(inputs, outputs)
        if return_outputs:  # compute_metrics wants logits
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
            with torch.no_grad():
                return loss, model(**inputs)
        return loss

    def _add_trls_metrics(self, inputs: dict[str, Any], outputs: LossHeadOutput) -> None:
        """Entropy, accuracy and token count as SFTTrainer names and averages them."""
        mode = "train" if self.model.training else "eval"
        metrics, everywhere = self._metrics[mode], self.accelerator.gather_for_metrics
        valid = everywhere(outputs.scored.sum()).sum()
        sums = {"entropy": outputs.entropy.sum(), "mean_token_accuracy": outputs.is_top1.sum()}
        numbers = [valid, *(everywhere(value).sum() / valid for value in sums.values())]
        if mode == "train":
            # Padding-free batches have no mask, and nothing to be masked.
            mask = inputs.get("attention_mask")
            ones = torch.ones_like(inputs["position_ids"][:1]) if mask is None else mask
            numbers.append(everywhere(ones.sum()).sum())
        # Each reading waits for the device: one for all.
        wide = wide_dtype(valid.device)
        count, *means = torch.stack([number.to(wide) for number in numbers]).tolist()
        if mode == "train":
            self._total_train_tokens += int(means.pop()) // self.get_tp_size()
        for name, mean in zip(sums, means, strict=True):
            metrics[name].append(mean if count > 0 else 0.0)
        metrics["num_tokens"] = [self._total_train_tokens]
        if self.aux_loss_enabled:
            metrics["aux_loss"].append(everywhere(outputs.aux_loss).mean().item())

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss, and logits only where they are asked for: they take a forward of their own."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, inputs), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, outputs.logits, inputs.get("labels")

    def calibrate(self, model: Any | None = None) -> None:
        """Replace tau="auto" by a number; called by itself before the first step or evaluation."""
        calibrate(self, self._head, rows=self.args.calibration_rows, model=model)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """SFTTrainer's; of several evaluation sets each has all metrics under its own name."""
        self._eval_prefix = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """SFTTrainer's, with its metrics under the name of the evaluation set that they are of."""
        name = self._eval_prefix.removeprefix("eval")
        if not self.model.training and name.startswith("_"):
            averaged = self._metrics["eval"]
            self._metrics["eval"] = defaultdict(
                list, {f"{name[1:]}_{key}": values for key, values in averaged.items()}
            )
        super().log(logs, start_time)
