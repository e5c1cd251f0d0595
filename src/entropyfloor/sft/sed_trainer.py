"""SEDTrainer: trl's SFTTrainer with an entropy-preserving loss. Change one line, keep everything.

    trainer = SEDTrainer(model, args=SEDConfig(...), train_dataset=data)          # SED by default
    trainer = SEDTrainer(model, args=SFTConfig(...), train_dataset=data, loss="gem")

What it overrides: the forward that trl patches into the model (``models/loss_head.py``), and around
``compute_loss`` the calibration of tau before the first step and the extra metrics after it. trl's
reduction, gradient accumulation, packing, PEFT, MoE auxiliary loss and checkpoints are inherited.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from entropyfloor.models.loss_head import LossHeadOutput
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.floor.floor import FlooredTrainer
from entropyfloor.sft.floor.reference_cache import cached_reference
from entropyfloor.sft.floor.reference_model import ReferenceModel
from entropyfloor.sft.run_record import read_recorded_loss
from entropyfloor.sft.sed_config import SEDConfig
from entropyfloor.sft.training_rows import check_metric_for_best_model, check_rows_left
from entropyfloor_losses import TokenStatistics, loss_by_name, needs_calibration

logger = get_logger(__name__)

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
            source = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SEDConfig(f"{source.split('/')[-1]}-SED")
        elif not isinstance(args, SEDConfig):
            args = SEDConfig.from_arguments(args)
        args.refuse_what_replaces_the_loss()  # fields may have been assigned since it was built
        chosen = _choose_loss(args, loss)
        # compute_loss_func is SFTTrainer's seventh positional argument: model, args and four more.
        if sft_kwargs.get("compute_loss_func") or (len(sft_args) > 4 and sft_args[4] is not None):
            raise ValueError(
                "compute_loss_func would replace the chosen loss. Pass your own per-token loss as "
                "SEDTrainer(loss=...), a callable on TokenStatistics, or use trl's SFTTrainer"
            )
        self._eval_prefix = "eval"
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        # SFTTrainer replaces the datasets by tokenised ones. They are its positional arguments
        # after the collator.
        train_data, eval_data = ([*sft_args[1:3], None, None][:2]) if sft_args else (None, None)
        train_data = sft_kwargs.get("train_dataset", train_data)
        eval_data = sft_kwargs.get("eval_dataset", eval_data)
        check_metric_for_best_model(args, eval_data)
        super().__init__(model, args, *sft_args, **sft_kwargs)
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and getattr(parallelism, "sp_enabled", False):
            raise ValueError(
                "sequence parallelism (Ulysses/ALST) makes Trainer reduce the model's own loss, so "
                "the chosen loss would be ignored. Use context parallelism (cp_size) or none"
            )
        check_rows_left(train_data, self.train_dataset, args, "train_dataset")
        check_rows_left(eval_data, self.eval_dataset, args, "eval_dataset")
        self._chosen_loss = chosen
        self._attach(
            chosen,
            probe_prompts=probe_prompts,
            probe_reward=probe_reward,
            datasets=(eval_data, train_data),
            cached=args.floor_reference_cache is not None,
        )

    @property
    def loss(self) -> Loss:
        """The loss in force; after calibration its ``tau`` is a number."""
        return self._head.loss

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; on resume, a calibrated tau comes from the checkpoint."""
        checkpoint = self._checkpoint_of(resume_from_checkpoint)
        self._use_reference_cache(resumed=checkpoint is not None)
        if checkpoint is not None and self.floor is not None:
            self.floor.restore(checkpoint)
        # The loss as chosen: an evaluation before may have calibrated it, on another model.
        if checkpoint is not None and needs_calibration(self._chosen_loss):
            self._restore_tau(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """SFTTrainer's ``compute_loss`` on our objective, plus metrics."""
        if needs_calibration(self.loss):
            self.calibrate(model)
        outputs: list[Any] = []

        def recording(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        result = super().compute_loss(recording, inputs, return_outputs, num_items_in_batch)
        self._add_to_sums(outputs[0])
        return result

    def _use_reference_cache(self, *, resumed: bool = False) -> None:
        """Read the reference from its cache from now on; made if missing, at the onset if of it."""
        reference = self._head.reference
        if self.args.floor_reference_cache and isinstance(reference, ReferenceModel):
            self._head.reference = cached_reference(self, reference, resumed=resumed)

    def calibrate(self, model: Any | None = None) -> None:
        """Replace tau="auto" by a number: a quantile of the current model's top-k mass.

        Measured on ``args.calibration_rows`` training rows spread evenly over the set (the first
        ones of a streamed set), scored tokens only, dropout off; no random state is consumed, so
        the run that follows is the run without it. Called by itself before the first step.
        """
        if not needs_calibration(self.loss):
            return
        network = self.model if model is None else model
        head, waiting = self._head, self._head.loss
        was_training = network.training
        masses: list[float] = []
        try:
            head.loss = replace(waiting, tau=1.0)  # type: ignore[type-var]
            network.eval()
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                # Not get_eval_dataloader: with persistent workers Trainer keeps that one.
                for batch in self.get_test_dataloader(self._calibration_sample()):
                    inputs = self._prepare_inputs(batch)
                    with self.compute_loss_context_manager():
                        output: LossHeadOutput = network(**inputs, fused_lm_head=True)
                    assert output.top_k_mass is not None and output.label_mask is not None
                    masses.extend(output.top_k_mass[output.label_mask].tolist())
        finally:
            head.loss = waiting
            network.train(was_training)
        if self.accelerator.num_processes > 1:
            masses = gather_object(masses)
        head.loss = waiting.calibrated(torch.tensor(masses, dtype=torch.float64))  # type: ignore[attr-defined]
        logger.info(
            f"tau calibrated to {head.loss.tau:.4f} on {len(masses)} tokens: the "  # type: ignore[attr-defined]
            f"{waiting.quantile:.0%} quantile of the top-{waiting.top_k} mass"  # type: ignore[attr-defined]
        )

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
        """Add our metrics, each a ratio of sums over the tokens since the last log."""
        mode = "train" if self.model.training else "eval"
        sums = {name: float(value) for name, value in self._sums[mode].items()}
        self._sums[mode] = {}
        if sums.get("tokens"):
            tokens = sums.pop("tokens")
            metrics = self._metrics[mode]
            metrics["ce"] = [sums["ce"] / tokens]
            metrics["penalty"] = [(sums["objective"] - sums["ce"]) / tokens]
            metrics["selected_fraction"] = [sums["selected"] / tokens]
            metrics["top_k_mass"] = [sums["top_k_mass"] / tokens]
            if self.floor is not None and mode == "train":
                metrics["reference_kl"] = [sums["reference_kl"] / tokens]
                for name, value in self.floor.logs().items():
                    metrics[name] = [value]
        if mode == "eval" and (name := self._eval_prefix.removeprefix("eval")).startswith("_"):
            # trl puts "eval_" before each, whichever evaluation set they are of.
            averaged = self._metrics[mode]
            self._metrics[mode] = defaultdict(
                list, {f"{name[1:]}_{key}": values for key, values in averaged.items()}
            )
        super().log(logs, start_time)

    def _add_to_sums(self, output: LossHeadOutput) -> None:
        mode = "train" if self.model.training else "eval"
        assert output.label_mask is not None and output.log_probs is not None
        assert output.token_log_probs is not None and output.top_k_mass is not None
        assert output.selected is not None
        local = {
            "tokens": output.label_mask.sum(),
            "objective": -output.log_probs.detach(),
            "ce": -output.token_log_probs.sum(),
            "selected": output.selected.sum(),
            "top_k_mass": output.top_k_mass.sum(),
        }
        if self.floor is not None:
            assert output.entropy is not None
            local["entropy"] = output.entropy.sum()
            nothing = torch.zeros_like(local["tokens"])
            local["reference_kl"] = (
                nothing if output.reference_kl is None else output.reference_kl.sum()
            )
        # Sums over long runs between two logs need fp64, which MPS does not have.
        wide = torch.float32 if self.args.device.type == "mps" else torch.float64
        stacked = torch.stack([value.to(wide) for value in local.values()])
        total = self.accelerator.reduce(stacked, reduction="sum")
        sums = defaultdict(lambda: torch.zeros_like(total[0]), self._sums[mode])
        self._sums[mode] = {name: sums[name] + total[i] for i, name in enumerate(local)}
        if self.floor is not None and mode == "train":
            names = list(local)
            entropy, tokens = (float(total[names.index(n)]) for n in ("entropy", "tokens"))
            self.floor.observe(entropy, tokens)

    def _calibration_sample(self) -> Any:
        rows = self.args.calibration_rows
        if not isinstance(self.train_dataset, Dataset):
            return Dataset.from_list(list(itertools.islice(self.train_dataset, rows)))
        count = min(rows, len(self.train_dataset))
        return self.train_dataset.select(
            [i * len(self.train_dataset) // count for i in range(count)]
        )

    def _restore_tau(self, checkpoint: str | Path) -> None:
        recorded = read_recorded_loss(checkpoint)
        waiting: Any = self._chosen_loss
        if recorded is None:
            logger.warning(
                f"{checkpoint} has no record of a calibrated tau; it will be calibrated on the "
                "checkpoint's model, which is not the model training started from"
            )
            self._head.loss = waiting
        elif not hasattr(recorded, "tau") or replace(recorded, tau="auto") != waiting:
            raise ValueError(
                f"{checkpoint} was trained with {recorded} and this run asks for {waiting}. Resume "
                "with the same loss, or pass tau as a number to change it on purpose"
            )
        else:
            self._head.loss = recorded


def _choose_loss(args: SEDConfig, loss: str | Loss | None) -> Loss:
    if loss is None:
        return args.build_loss()
    if isinstance(loss, str):
        return loss_by_name(loss, **args.loss_options())
    if not callable(loss):
        raise ValueError(
            f"loss is {loss!r}; pass a name, a loss object or a callable on TokenStatistics"
        )
    if args.loss_options():
        raise ValueError(
            f"loss is an object and SEDConfig sets {', '.join(args.loss_options())} beside it, "
            "which would have no effect; put every option into the object"
        )
    return loss
