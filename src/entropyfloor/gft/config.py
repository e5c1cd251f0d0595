"""GFTConfig: trl's GRPOConfig for group fine-tuning. What GFT's loss does not have is refused.

A batch is counted in *prompts*: ``per_device_train_batch_size`` prompts, each with its whole group
of responses, are one micro-batch. trl counts rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from trl import GRPOConfig

from entropyfloor.gft.responses import DATASET_SOURCES, SOURCES
from entropyfloor.rollouts.options import flag
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.stats.groups import check_success_threshold
from entropyfloor_losses import GroupFineTuningLoss
from entropyfloor_losses.inputs import check_count, check_not_negative

GROUP_OF_ONE = ("error", "imitate", "skip")
UNSCORED = ("error", "leave_out")

_COUNTED = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
)
_NO_RATIO = "the loss has neither a probability ratio nor clipping: each group is used once"
# Options of GRPOConfig that change a loss which is not computed here, by the reason.
_REFUSED = {
    _NO_RATIO: (
        *("num_iterations", "epsilon", "epsilon_high", "delta", "importance_sampling_level"),
        *("off_policy_mask_threshold", "sapo_temperature_neg", "sapo_temperature_pos"),
        *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
        *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
        *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    ),
    "the loss has no reference model": ("beta", "sync_ref_model", "use_bias_correction_kl"),
    "the loss is GFT's; choose tau, rectification and advantages": ("loss_type",),
    "reward functions are summed, then normalised in the group": ("multi_objective_aggregation",),
    "every token of a response is trained on": ("top_entropy_quantile",),
    "entropy is kept up by the entropy floor": ("entropy_coef", "use_adaptive_entropy"),
    "the fused head accumulates in fp32 already": ("cast_lm_head_to_fp32",),
    "it replaces the forward that the loss is computed in": ("use_liger_kernel",),
    "it belongs to a loss that is not computed": ("label_smoothing_factor",),
    "responses are single turns": ("max_tool_calling_iterations",),
    "prompts are drawn in a random order, or with shuffle_dataset=False in that of the dataset": (
        "train_sampling_strategy",
    ),
}


@dataclass
class GFTConfig(FloorOptions, GRPOConfig):
    """Arguments of `GFTTrainer`: every field of ``trl.GRPOConfig`` and the ones below.

    The entropy floor's fields are those of `FloorOptions`; it is a term beside the loss, on the
    tokens of all responses.

    Raises:
        ValueError: a value out of range, or an option of GRPOConfig that GFT's loss does not have.

    """

    learning_rate: float = flag(1e-5, "An imitation loss's, not RL's.")
    per_device_train_batch_size: int = flag(
        1, "*Prompts*, with their whole groups, per micro-batch and device."
    )
    num_generations: int | None = flag(None, "The same as num_self, which is the one to set.")
    vllm_importance_sampling_correction: bool = flag(
        False, "Has to be off: the loss has no probability ratio."
    )

    num_expert: int = flag(
        1,
        "Expert responses of a row that take part in a step, at most. Of more, a draw that follows "
        "from seed, step and row; rows may have fewer.",
    )
    num_teacher: int = flag(3, "Teacher responses per group, at most.")
    num_other: int = flag(0, "Other responses per group, at most.")
    num_self: int = flag(4, "Policy samples per prompt and step; 0 for none.")
    tau: float | None = flag(
        None,
        "DCR threshold on p_y; 0 is none, anything above 1 is DFT's weighting. Default: the "
        "loss's 0.7.",
    )
    rectification: bool = flag(True, "Off: tau = 0, the paper's ablation.")
    advantages: bool = flag(
        True,
        "Off: every response has the advantage 1, the paper's ablation; rewards are only logged.",
    )
    advantage_ddof: int = flag(
        0,
        "Of the standard deviation that scale_rewards (group, batch or none) divides by: 0 is the "
        "population's, 1 the sample's (trl's).",
    )
    group_of_one: str = flag(
        "error",
        "A group with one scored response has nothing to compare it with: error, imitate (one of "
        "the data set gets the advantage 1, a policy sample is skipped) or skip (it takes no part, "
        "its tokens are not counted).",
    )
    on_unscored: str = flag(
        "error",
        "A response for which all reward functions return None or NaN: error, or leave_out of its "
        "group and of the loss; responses/unscored counts them.",
    )
    expert_weight: float = flag(1.0, "Factor on the advantages of expert responses.")
    teacher_weight: float = flag(1.0, "The same for teacher responses.")
    other_weight: float = flag(1.0, "The same for the rest.")
    self_weight: float = flag(1.0, "The same for policy samples.")
    success_threshold: float = flag(
        1.0,
        "A response passed if its reward is at least this; tells all-right from all-wrong groups "
        "in the log, nothing else.",
    )

    def __post_init__(self) -> None:
        self._check_group()
        by_user = {name: getattr(self, name) for name in _COUNTED}
        # GRPOConfig counts rollouts and wants two per prompt: let it check in its own unit.
        rollouts = max(2, self.num_self)
        evaluated = self.num_generations_eval or rollouts
        in_rollouts = {
            "per_device_train_batch_size": by_user["per_device_train_batch_size"] * rollouts,
            "per_device_eval_batch_size": by_user["per_device_eval_batch_size"] * evaluated,
            "num_generations": rollouts,
            "steps_per_generation": None,
            "generation_batch_size": None,
        }
        for name, value in in_rollouts.items():
            setattr(self, name, value)
        super().__post_init__()
        in_prompts = {
            "per_device_train_batch_size": by_user["per_device_train_batch_size"],
            "per_device_eval_batch_size": by_user["per_device_eval_batch_size"],
            "num_generations": self.num_self,
            "steps_per_generation": self.gradient_accumulation_steps,
            # Policy samples of a step: what trl sizes its table of completions by.
            "generation_batch_size": by_user["per_device_train_batch_size"]
            * self.world_size
            * self.gradient_accumulation_steps
            * max(1, self.num_self),
        }
        for name, value in in_prompts.items():
            setattr(self, name, value)
            if by_user[name] not in (None, value):
                raise ValueError(
                    f"{name} is {by_user[name]}; {_NO_RATIO}, so it is {value} here: policy "
                    "samples are drawn for one optimizer step. Leave it out"
                )
        self.check_floor()
        if self.reads_data:
            raise ValueError(
                "entropy_floor='auto' is read off the cross-entropy of held-out rows, and GFT's "
                "rows are groups of responses. Give nats, such as the floor that an SFT run with "
                "'auto' ended with"
            )
        self._refuse()

    def _check_group(self) -> None:
        counts = self.response_counts() | {"self": self.num_self}
        for source, count in counts.items():
            check_count(f"num_{source}", count, least=0)
        if not any(counts.values()):
            raise ValueError(
                "num_expert, num_teacher, num_other and num_self are all 0: there is nothing to "
                "train on"
            )
        if self.num_generations not in (None, self.num_self):
            raise ValueError(
                f"num_generations is {self.num_generations} and num_self {self.num_self}; they are "
                "the same thing here: set num_self alone"
            )
        for source, weight in self.source_weights().items():
            check_not_negative(f"{source}_weight", weight)
        for name, allowed in (("group_of_one", GROUP_OF_ONE), ("on_unscored", UNSCORED)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        check_success_threshold(self.success_threshold)
        if self.advantage_ddof not in (0, 1):
            raise ValueError(f"advantage_ddof is {self.advantage_ddof!r}; it must be 0 or 1")
        if not self.rectification and self.tau is not None:
            raise ValueError(
                f"rectification is off and tau {self.tau}, which would have no effect; "
                "rectification=False is tau=0"
            )
        self.build_loss()

    def _refuse(self) -> None:
        default = {f.name: f.default for f in fields(self)}
        for name, why in ((name, why) for why, names in _REFUSED.items() for name in names):
            value = getattr(self, name)
            if value != default[name]:
                raise ValueError(
                    f"{name}={value!r} would have no effect on GFT's loss: {why}. Leave it out, or "
                    "use trl's GRPOTrainer"
                )

    def response_counts(self) -> dict[str, int]:
        """How many responses of each of the data set's sources take part in a step, at most."""
        return {source: getattr(self, f"num_{source}") for source in DATASET_SOURCES}

    def source_weights(self) -> dict[str, float]:
        """Factor on the advantages of each source, in the order of `SOURCES`."""
        return {source: getattr(self, f"{source}_weight") for source in SOURCES}

    def build_loss(self) -> GroupFineTuningLoss:
        """The loss that these settings describe."""
        if not self.rectification:
            return GroupFineTuningLoss(tau=0.0)
        options: dict[str, Any] = {} if self.tau is None else {"tau": self.tau}
        return GroupFineTuningLoss(**options)
