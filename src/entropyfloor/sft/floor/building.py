"""An `EntropyFloor` from its options, on the model that training starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from entropyfloor.models.loss_head import LossHead
from entropyfloor.rollouts.prompts import Prompt, PromptSet, row_with_chat_options
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name
from entropyfloor.sft.floor.floor import EntropyFloor, warn
from entropyfloor.sft.floor.held_out import Batches, held_out_slice
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.sft.floor.probe import RolloutProbe, probed_prompts
from entropyfloor.sft.floor.reference_cache import CachedOnset
from entropyfloor.sft.floor.reference_model import OnsetModel, ReferenceModel, starting_model


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


def is_sharded(trainer: Any) -> bool:
    """Whether DeepSpeed or FSDP shard the model that a trainer trains."""
    return trainer is not None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def _reference(options: FloorOptions, model: Any, trainer: Any) -> ReferenceModel | None:
    """The reference model of an anchor; None without one."""
    if options.on_violation != "constrain" or not options.build_term().needs_reference:
        return None
    if is_sharded(trainer):
        raise ValueError(
            f"floor_place={options.floor_place!r} needs the whole reference model on every "
            "process, which DeepSpeed and FSDP shard. Use floor_place='uniform'"
        )
    cached = getattr(options, "reference_cache", None) is not None
    if options.floor_place == "onset_anchor":
        return CachedOnset(trainer) if cached else OnsetModel(model)
    return starting_model(model, copied=not cached)


def _probe(
    options: FloorOptions,
    model: Any,
    trainer: Any,
    processing_class: Any,
    prompts: PromptSet,
    reward: str | RewardFunction | None,
) -> RolloutProbe:
    if is_sharded(trainer):
        raise ValueError(
            "the probe samples from the model in training, which DeepSpeed and FSDP shard. "
            "Set floor_probe_prompts=0: the floor then holds for teacher-forced entropy"
        )
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
    )
