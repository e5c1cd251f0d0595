"""An `EntropyFloor` from its options, on the model that training starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from entropyfloor.models.loss_head import LossHead
from entropyfloor.models.model_state import WholeCopy, is_sharded
from entropyfloor.rollouts.prompts import Prompt, PromptSet, row_with_chat_options
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name
from entropyfloor.sft.floor.floor import EntropyFloor, warn
from entropyfloor.sft.floor.held_out import Batches, held_out_slice
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.sft.floor.probe import RolloutProbe, probed_prompts
from entropyfloor.sft.floor.reference_cache import CachedOnset
from entropyfloor.sft.floor.reference_model import (
    OnsetModel,
    ReferenceModel,
    starting_model,
    takes_over,
)


def build_floor(
    head: LossHead,
    options: FloorOptions,
    model: Any,
    *,
    trainer: Any = None,
    processing_class: Any = None,
    prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    held_out: Batches | None = None,
) -> EntropyFloor:
    """The floor of a run; the head gets its term and reference model.

    Args:
        head: of the model.
        options: with ``entropy_floor``.
        model: in training, PEFT's wrapper included.
        trainer: that trains it, if there is one.
        processing_class: tokenizer, for a probe.
        prompts: of the probe; none: no probe.
        reward: of the probe, by name or in trl's signature.
        held_out: batches that an "auto" floor is read off; None: the trainer's evaluation set.

    Raises:
        ValueError: a floor above what the vocabulary allows, a reference model or a probe that
            sharding forbids, prompts that cannot be probed.

    """
    controller = options.build_controller()
    vocabulary = model.config.get_text_config().vocab_size
    if controller.floor >= math.log(vocabulary):
        raise ValueError(
            f"entropy_floor is {controller.floor} nats; no distribution over {vocabulary} "
            f"tokens has more than {math.log(vocabulary):.2f}. The paper's threshold is 0.18"
        )
    # An anchor and a loss that compares with the starting model share it.
    reference = None if head.reference is not None else _reference(options, model, trainer)
    prompts = probed_prompts(prompts, (), options.floor_probe_prompts)
    probe = None
    if prompts is not None:
        probe = _probe(options, model, trainer, processing_class, prompts, reward)
    elif options.floor_probe_prompts and not options.reads_data:
        warn(
            "no prompts were given to probe and the datasets have no column 'prompt', so the "
            "entropy floor holds for teacher-forced entropy only, which is not that of rollouts. "
            "Pass probe_prompts=[...]"
        )
    rows = held_out_slice(options, trainer, held_out) if options.reads_data else None
    if rows is not None:
        warn(
            f"the entropy floor is read off {rows.source}: {options.floor_factor:g} times their "
            "lowest loss. Screening judges rollouts, by tau_H (0.18 nats in the paper)"
        )
    head.term = options.build_term()
    if reference is not None:
        head.reference = reference
    return EntropyFloor(
        controller,
        head,
        probe,
        rows,
        on_violation=options.on_violation,
        probe_steps=options.floor_probe_steps,
    )


def refuse_what_drops_the_loss(trainer: Any) -> None:
    """Refuse processes that share a sequence or its layers, and an adapter with a loss of its own.

    Args:
        trainer: or None.

    Raises:
        ValueError: sequence, context or tensor parallelism; PEFT's CPT.

    """
    adapter = getattr(getattr(trainer, "model", None), "active_peft_config", None)
    if adapter is not None and adapter.peft_type == "CPT":
        raise ValueError(
            "PEFT's CPT computes a loss of its own from the logits, in place of the chosen one. "
            "Use LoRA, prompt tuning or prefix tuning"
        )
    parallelism = getattr(getattr(trainer, "accelerator", None), "parallelism_config", None)
    instead = "FSDP2 or DeepSpeed ZeRO, with activation_offloading=True for long sequences"
    if getattr(parallelism, "sp_enabled", False):
        raise ValueError(
            "sequence parallelism (Ulysses/ALST) makes Trainer reduce the model's own loss, so "
            f"the chosen loss would be ignored. Leave sp_size out: {instead}"
        )
    if getattr(parallelism, "cp_enabled", False):
        raise ValueError(
            "context parallelism gives each process a part of every sequence by ring attention, "
            "under which the gradient of the chosen loss was never compared. Leave cp_size out: "
            f"{instead}"
        )
    # That of the model or of DeepSpeed; accelerate's, which older versions of Trainer leave out.
    of_trainer = getattr(trainer, "get_tp_size", lambda: 1)()
    if max(of_trainer, getattr(parallelism, "tp_size", 1)) > 1:
        raise ValueError(
            "tensor parallelism has processes compute every forward together, and rollouts for the "
            "entropy floor, or for groups, are drawn by each process at its own pace. Load the "
            f"model without tp_plan, tp_size or autotp_size: {instead}"
        )


def refuse_under_sharding(trainer: Any, options: Any, what: str) -> None:
    """Refuse a reference that FSDP or DeepSpeed make impossible.

    Args:
        trainer: or None.
        options: `SEDConfig`, or `FloorOptions` alone.
        what: needs it.

    Raises:
        ValueError: FSDP1, a cache on disk, parameters on NVMe or kept twice.

    """
    if not takes_over(trainer):
        return
    state = trainer.accelerator.state
    if getattr(options, "reference_cache", None) is not None:
        raise ValueError(
            f"reference_cache is filled before DeepSpeed or FSDP take the model over, where {what} "
            "could not be computed. Leave it out: a reference is then a copy of each process's "
            "shard"
        )
    if trainer.is_fsdp_enabled and state.fsdp_plugin.fsdp_version == 1:
        raise ValueError(
            f"{what} needs a reference model, whose parameters cannot be exchanged under FSDP1. "
            "Use FSDP2 (fsdp_config={'version': 2})"
        )
    if trainer.is_deepspeed_enabled:
        zero = state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        on_nvme = zero.get("offload_param", {}).get("device") == "nvme"
        if on_nvme or zero.get("zero_hpz_partition_size", 1) > 1:
            raise ValueError(
                f"{what} needs a reference model, whose parameters cannot be exchanged where ZeRO "
                "keeps them on NVMe (offload_param) or a second time (zero_hpz_partition_size). "
                "Leave these out of the DeepSpeed configuration"
            )


def _reference(options: FloorOptions, model: Any, trainer: Any) -> ReferenceModel | None:
    """The reference model of an anchor; None without one."""
    if options.on_violation != "constrain" or not options.build_term().needs_reference:
        return None
    refuse_under_sharding(trainer, options, f"floor_place={options.floor_place!r}")
    cached = getattr(options, "reference_cache", None) is not None
    if options.floor_place == "onset_anchor":
        return CachedOnset(trainer) if cached else OnsetModel(model)
    return starting_model(model, copied=not cached, late=takes_over(trainer))


def _probe(
    options: FloorOptions,
    model: Any,
    trainer: Any,
    processing_class: Any,
    prompts: PromptSet,
    reward: str | RewardFunction | None,
) -> RolloutProbe:
    if processing_class is None:
        raise ValueError(
            "probe_prompts need a tokenizer: Trainer(processing_class=...), or "
            "floor.prepare(model, tokenizer) in a loop of your own"
        )
    if variables := getattr(options, "chat_template_kwargs", None):  # GRPO's; SFT has the column
        rows = (row_with_chat_options(r, chat_template_kwargs=variables) for r in prompts.rows)
        prompts = PromptSet(tuple(rows), prompts.source)
    return RolloutProbe(
        prompts,
        getattr(processing_class, "tokenizer", processing_class),
        max_new_tokens=options.floor_probe_tokens,
        seed=0 if trainer is None else trainer.args.seed,
        reward=reward_by_name(reward) if isinstance(reward, str) else reward,
        context_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        whole=WholeCopy(model) if _shards(trainer) or is_sharded(model) else None,
    )


def _shards(trainer: Any) -> bool:
    """Whether a trainer's processes will hold parts of the parameters (FSDP, ZeRO-3)."""
    if trainer is None or not trainer.is_deepspeed_enabled:
        return trainer is not None and bool(trainer.is_fsdp_enabled)
    return bool(trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)
